// Command forms compares the file in which plusminus keeps many counters (hub/journal) with databases: how many commits a
// second each makes, and what a reader gets if one byte of the files is inverted. It prints two Markdown tables. The
// package comment of hub/journal has the figures. It takes four minutes. The files are in a folder below TMPDIR, which must be on a disk:
//
//	go run -C bench ./forms
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const (
	rateTime = 2 * time.Second // of each of three measurements of a rate
	inverted = 3000            // bytes to invert, one at a time; evenly spread over the bytes that are not 0
	counters = 100             // in the files with an inverted byte
	last     = 300             // their value, and the number of commits that led to it
)

// childFailed is the exit status of a child that could not do its work. A crash of a database has another one.
const childFailed = 3

func main() {
	if len(os.Args) == 4 && os.Args[1] == "child" {
		if err := readDamaged(os.Args[2], os.Args[3], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(childFailed)
		}
		return
	}
	dir, err := os.MkdirTemp("", "forms")
	if err == nil {
		err = rates(dir)
		os.RemoveAll(dir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "forms:", err)
		os.Exit(1)
	}
}

// rates prints how many commits a second each form makes, three times in turns. Then it goes on with damage.
func rates(dir string) error {
	fmt.Println("| commits a second | of 1 counter | ratio | of 1,000 counters | ratio |\n|---|--:|--:|--:|--:|")
	sizes := []int{1, 1000}
	got := make([][2][]float64, len(forms))
	for round := range 3 {
		for i, f := range forms {
			sub := filepath.Join(dir, fmt.Sprint("rate", round, i))
			err := os.Mkdir(sub, 0o700)
			if err != nil {
				return err
			}
			db, err := f.open(sub)
			if err == nil {
				err = db.set(1000, 1) // all counters are there
			}
			for k := 0; k < len(sizes) && err == nil; k++ {
				n, start := int64(0), time.Now()
				for time.Since(start) < rateTime && err == nil {
					n++
					err = db.set(sizes[k], n)
				}
				got[i][k] = append(got[i][k], float64(n)/time.Since(start).Seconds())
			}
			if err == nil {
				err = db.Close()
			}
			if err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	median := func(i, k int) float64 { slices.Sort(got[i][k]); return got[i][k][1] }
	for i, f := range forms {
		fmt.Printf("| %s | %.0f | %.2f | %.0f | %.2f |\n", f.name, median(i, 0), median(i, 0)/median(0, 0), median(i, 1), median(i, 1)/median(0, 1))
	}
	fmt.Println("\n| one byte inverted | files | right | error | older | 0 or none | other | crash |\n|---|---|--:|--:|--:|--:|--:|--:|")
	for _, f := range forms {
		for _, state := range []string{"killed", "closed"} {
			if err := damage(dir, f, state); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	return nil
}

// damage makes files with counters that all have the value last. It lets children invert bytes of a copy and read that.
func damage(dir string, f form, state string) error {
	whole, live := filepath.Join(dir, "whole-"+f.name+state), filepath.Join(dir, "live-"+f.name+state)
	if err := os.Mkdir(live, 0o700); err != nil {
		return err
	}
	db, err := f.open(live)
	for v := int64(1); v <= last && err == nil; v++ {
		err = db.set(counters, v)
	}
	if err == nil && state == "closed" {
		err = db.Close()
	}
	if err == nil {
		err = os.CopyFS(whole, os.DirFS(live)) // of an open form: what a killed process leaves
	}
	if err == nil && state == "killed" {
		err = db.Close()
	}
	if err != nil {
		return err
	}
	places, err := placesIn(whole)
	if err != nil {
		return err
	}
	count := map[string]int{}
	for len(places) > 0 {
		cmd := exec.Command(os.Args[0], "child", f.name, whole)
		cmd.Stdin = strings.NewReader(strings.Join(places, "\n"))
		out, err := cmd.Output()
		answers := strings.Fields(string(out))
		for _, a := range answers {
			count[a]++
		}
		places = places[len(answers):]
		var end *exec.ExitError
		if errors.As(err, &end) && end.ExitCode() == childFailed {
			return fmt.Errorf("a child: %s", end.Stderr)
		}
		if err != nil && len(places) > 0 { // the process has ended at the next place
			count["crash"]++
			places = places[1:]
		}
	}
	fmt.Printf("| %s | %s | %d | %d | %d | %d | %d | %d |\n", f.name, state, count["right"], count["error"], count["older"], count["none"], count["other"], count["crash"])
	return nil
}

// placesIn returns "offset path" of bytes in dir that are not 0.
func placesIn(dir string) ([]string, error) {
	var all []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.EqualFold(strings.TrimPrefix(filepath.Base(path), "counter."), "lock") {
			return err
		}
		content, err := os.ReadFile(path)
		rel, _ := filepath.Rel(dir, path)
		for off, b := range content {
			if b != 0 {
				all = append(all, fmt.Sprint(off, " ", rel))
			}
		}
		return err
	})
	n := min(inverted, len(all))
	places := make([]string, n)
	for i := range places {
		places[i] = all[i*len(all)/n]
	}
	return places, err
}

// readDamaged inverts, for each line of in, that byte in a copy of the files, and writes to out what a reader gets.
func readDamaged(name, whole string, in io.Reader, out io.Writer) error {
	i := slices.IndexFunc(forms, func(f form) bool { return f.name == name })
	for lines := bufio.NewScanner(in); lines.Scan(); {
		var off int
		var rel string
		fmt.Sscan(lines.Text(), &off, &rel)
		dir, err := os.MkdirTemp(filepath.Dir(whole), "damaged")
		if err == nil {
			err = os.CopyFS(dir, os.DirFS(whole))
		}
		var content []byte
		if err == nil {
			content, err = os.ReadFile(filepath.Join(dir, rel))
		}
		if err == nil {
			content[off] ^= 0xff
			err = os.WriteFile(filepath.Join(dir, rel), content, 0o600)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(out, outcome(forms[i], dir))
		os.RemoveAll(dir)
	}
	return nil
}

// outcome is the worst that a reader gets.
func outcome(f form, dir string) string {
	db, err := f.open(dir)
	if err != nil {
		return "error"
	}
	defer db.Close()
	seen := map[string]bool{}
	for i := range counters {
		switch v, err := db.get(i); {
		case err != nil:
			return "error" // a server would not go on
		case v == 0:
			seen["none"] = true
		case v > 0 && v < last:
			seen["older"] = true
		case v != last:
			seen["other"] = true
		}
	}
	for _, o := range []string{"other", "none", "older"} {
		if seen[o] {
			return o
		}
	}
	return "right"
}
