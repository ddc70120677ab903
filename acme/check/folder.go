package check

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"plusminus/acme/internal/store"
)

// checkFolder checks that the data folder can be written, is private, and survives a restart.
func (c *checker) checkFolder() {
	const subject = "data folder"
	dir := c.cfg.Dir
	info, err := os.Stat(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := tryFolder(dir); err != nil {
			c.say(Problem, subject, "%s is not there, and cannot be made: %v", dir, err)
			return
		}
		c.say(OK, subject, "%s is not there yet; the server can make it", dir)
		c.checkMount(dir)
		return
	case err != nil:
		c.noDir = true
		c.say(Problem, subject, "%v", err)
		return
	case !info.IsDir():
		c.noDir = true
		c.say(Problem, subject, "%s is no folder", dir)
		return
	}
	owner, probeOwner, err := probeFolder(dir)
	switch {
	case err != nil:
		c.noDir = true
		c.say(Problem, subject, "cannot be written: %v; it must belong to the user that plusminus runs as: uid %d here, and uid %d owns it", err, os.Geteuid(), owner)
		return
	case os.Geteuid() == 0 && owner != probeOwner:
		// What root leaves behind, a server that runs as the owner could not open.
		c.noDir = true
		c.say(Problem, subject, "%s belongs to uid %d, and this check runs as root: run it as the user that the server runs as; nothing is written there meanwhile", dir, owner)
	case info.Mode().Perm()&0o077 != 0:
		c.say(Warning, subject, "%s can be written, but others may look into it (mode %04o): chmod 700 %s", dir, info.Mode().Perm(), dir)
	default:
		c.say(OK, subject, "%s can be written, and is private", dir)
	}
	c.checkMount(dir)
}

// tryFolder makes dir with its parents, writes a file into it, and removes what it made.
func tryFolder(dir string) error {
	var made []string
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) {
			break
		}
		made = append(made, d)
	}
	defer func() {
		for _, d := range made {
			os.Remove(d) // fails, as it should, if another program uses d by now
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	_, _, err := probeFolder(dir)
	return err
}

// probeFolder writes a file to dir as the server does, with fsync, and removes it. It returns the user ids that own
// the folder and the file.
func probeFolder(dir string) (owner, probeOwner uint32, err error) {
	owner = ownerOf(dir)
	path := filepath.Join(dir, fmt.Sprintf(".check-%d", os.Getpid()))
	if err := store.WriteFile(path, make([]byte, 8<<10)); err != nil {
		return owner, 0, err
	}
	probeOwner = ownerOf(path)
	return owner, probeOwner, os.Remove(path)
}

// checkMount reports a folder that is lost with its container or at a restart. It reports nothing without /proc.
func (c *checker) checkMount(dir string) {
	const subject = "data folder"
	f, err := os.Open(c.cfg.mountinfo)
	if err != nil {
		return
	}
	defer f.Close()
	for ; ; dir = filepath.Dir(dir) { // up to what exists
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			dir = real
			break
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	m, err := mountOf(f, dir)
	if err != nil {
		return
	}
	switch {
	case m.fstype == "tmpfs" || m.fstype == "ramfs":
		c.say(Warning, subject, "it is in memory (%s on %s) and empty after a restart, which costs a new account and new certificates each time", m.fstype, m.point)
	case m.point == "/" && (strings.HasPrefix(m.fstype, "overlay") || m.fstype == "aufs"):
		c.say(Warning, subject, "it is in the container itself and goes with it, which costs a new account and new certificates each time: mount a volume, -v plusminus:%s", c.cfg.Dir)
	case anonymousVolume.MatchString(m.root):
		c.say(Warning, subject, "it is a volume without a name, which a new container does not find again: name it, -v plusminus:%s", c.cfg.Dir)
	}
}

// anonymousVolume matches the folder of a volume that Docker or Podman made for an image's VOLUME, without a name.
var anonymousVolume = regexp.MustCompile(`/volumes/[0-9a-f]{64}/_data$`)

// A mount is a line of /proc/self/mountinfo.
type mount struct {
	root   string // of the mount within its file system
	point  string // where it is mounted
	fstype string
}

// mountOf returns the mount that contains path, which must be absolute and free of symlinks. proc_pid_mountinfo(5)
// describes mountinfo.
func mountOf(mountinfo io.Reader, path string) (mount, error) {
	var found mount
	lines := bufio.NewScanner(mountinfo)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		separator := 6 // after the optional fields
		for separator < len(fields) && fields[separator] != "-" {
			separator++
		}
		if separator+1 >= len(fields) {
			continue
		}
		m := mount{root: unescape.Replace(fields[3]), point: unescape.Replace(fields[4]), fstype: fields[separator+1]}
		within := m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/")
		if within && len(m.point) >= len(found.point) { // a later mount hides an earlier one
			found = m
		}
	}
	if found.point == "" {
		return mount{}, cmp.Or(lines.Err(), fs.ErrNotExist)
	}
	return found, nil
}

// unescape reverts the kernel's escapes of white space in paths.
var unescape = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
