package export

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"plusminus/acme/internal/certs"
)

// Names in the folder of a name.
const (
	current    = "current"
	newCurrent = ".current"   // before the rename
	unfinished = ".new-"      // begins the name of a folder that is being filled
	hookDone   = ".hook-done" // in the folder of a pair: the hook has succeeded for it
)

// pairFolder matches the names of folders with a complete pair.
var pairFolder = regexp.MustCompile(`^[0-9a-f]+-[0-9]+$`)

// errForeign is wrapped by the error about a file that this package has not made.
var errForeign = errors.New("is not a link that plusminus has made")

// access is the mode of files, and the group of files and folders; -1 leaves the group to the system.
type access struct {
	mode  fs.FileMode
	group int
}

// folderMode returns the mode of folders: x where files have r, and all for the owner.
func (a access) folderMode() fs.FileMode { return a.mode | a.mode&0o444>>2 | 0o700 }

// give sets group and mode of a file or folder. The group comes first, so that no other group gets what mode permits.
func (a access) give(path string, mode fs.FileMode) error {
	if a.group >= 0 {
		if err := os.Chown(path, -1, a.group); err != nil {
			return err
		}
	}
	return os.Chmod(path, mode)
}

// has reports whether a file or folder has the group and the mode.
func (a access) has(info fs.FileInfo, mode fs.FileMode) bool {
	return info.Mode().Perm() == mode && (a.group < 0 || groupOf(info) == a.group)
}

// A file is one of the files of a pair.
type file struct {
	name string
	data []byte
}

// encode returns the files for cert.
func encode(cert *tls.Certificate) ([]file, error) {
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, err
	}
	return []file{
		{"cert.pem", certs.EncodeChain(cert.Certificate[:1])},
		{"chain.pem", certs.EncodeChain(cert.Certificate[1:])},
		{"fullchain.pem", certs.EncodeChain(cert.Certificate)},
		{"privkey.pem", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})}, // as certbot has it
	}, nil
}

// serial returns the serial number of cert in hexadecimal, as crt.sh and openssl show it.
func serial(cert *tls.Certificate) string { return fmt.Sprintf("%x", cert.Leaf.SerialNumber.Bytes()) }

// A folder has the files of one name. Its methods are for one goroutine, but for those of hook.go.
type folder struct {
	// Immutable.
	name   string
	path   string
	access access
	step   func() // see Config

	// Owned by pass.
	failing string // the error of the last pass; empty if it succeeded
}

// keep makes the files those of cert, if they are not, and reports whether it has.
func (f *folder) keep(cert *tls.Certificate) (wrote bool, err error) {
	files, err := encode(cert)
	if err != nil {
		return false, err
	}
	if f.holds(files) {
		return false, f.tidy()
	}
	if err := f.prepare(files); err != nil {
		return false, err
	}
	pair, err := f.fill(files, serial(cert))
	if err != nil {
		return false, err
	}
	if err := f.swap(pair); err != nil {
		return false, err
	}
	return true, f.tidy()
}

// holds reports whether the folder has these files, with the right modes and group.
func (f *folder) holds(files []file) bool {
	for _, dir := range []string{f.path, filepath.Join(f.path, current)} {
		info, err := os.Stat(dir)
		if err != nil || !info.IsDir() || !f.access.has(info, f.access.folderMode()) {
			return false
		}
	}
	for _, want := range files {
		path := filepath.Join(f.path, want.name)
		if target, err := os.Readlink(path); err != nil || target != linkTo(want.name) {
			return false
		}
		info, err := os.Stat(path)
		if err != nil || !info.Mode().IsRegular() || !f.access.has(info, f.access.mode) {
			return false
		}
		if data, err := os.ReadFile(path); err != nil || !bytes.Equal(data, want.data) {
			return false
		}
	}
	return true
}

// linkTo returns what the link called name leads to.
func linkTo(name string) string { return current + "/" + name }

// prepare makes the folder and the links of the files, if they are missing. In a new folder the links lead nowhere until
// swap, so all files appear in one step.
func (f *folder) prepare(files []file) error {
	f.stepped()
	if err := os.Mkdir(f.path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	f.stepped()
	if err := f.access.give(f.path, f.access.folderMode()); err != nil {
		return err
	}
	for _, file := range files {
		path := filepath.Join(f.path, file.name)
		target, err := os.Readlink(path)
		switch {
		case err == nil && target == linkTo(file.name):
			continue
		case errors.Is(err, fs.ErrPermission):
			return err
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s %w", path, errForeign)
		}
		f.stepped()
		if err := os.Symlink(linkTo(file.name), path); err != nil {
			return err
		}
	}
	path := filepath.Join(f.path, current)
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSymlink == 0 {
		return fmt.Errorf("%s %w", path, errForeign)
	}
	return nil
}

// fill makes a folder with the files, which survives a crash when fill returns. It returns its name. If it fails, it removes
// the folder as far as it can; tidy removes the rest.
func (f *folder) fill(files []file, serial string) (pair string, err error) {
	f.stepped()
	dir, err := os.MkdirTemp(f.path, unfinished)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil { // a full disk would get one more folder each minute
			os.RemoveAll(dir)
		}
	}()
	for _, file := range files {
		if err := f.writeFile(filepath.Join(dir, file.name), file.data); err != nil {
			return "", err
		}
	}
	f.stepped()
	if err := f.access.give(dir, f.access.folderMode()); err != nil {
		return "", err
	}
	if err := syncFolder(dir); err != nil {
		return "", err
	}
	pair = serial + "-" + strings.TrimPrefix(filepath.Base(dir), unfinished)
	f.stepped()
	if err := os.Rename(dir, filepath.Join(f.path, pair)); err != nil {
		return "", err
	}
	return pair, syncFolder(f.path)
}

// writeFile makes a file that does not exist, and syncs it.
func (f *folder) writeFile(path string, data []byte) error {
	f.stepped()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer file.Close()
	f.stepped()
	if _, err := file.Write(data); err != nil {
		return err
	}
	f.stepped()
	if err := f.access.give(path, f.access.mode); err != nil {
		return err
	}
	if err := file.Sync(); err != nil {
		return err
	}
	return file.Close()
}

// swap makes pair the current folder, in one step.
func (f *folder) swap(pair string) error {
	link := filepath.Join(f.path, newCurrent)
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f.stepped()
	if err := os.Symlink(pair, link); err != nil {
		return err
	}
	f.stepped()
	if err := os.Rename(link, filepath.Join(f.path, current)); err != nil {
		return err
	}
	f.stepped()
	return syncFolder(f.path)
}

// tidy removes what a crash has left, and the pairs before the former one.
func (f *folder) tidy() error {
	entries, err := os.ReadDir(f.path)
	if err != nil {
		return err
	}
	now, err := os.Readlink(filepath.Join(f.path, current))
	if err != nil {
		return err
	}
	var former []fs.FileInfo
	var errs []error
	remove := func(name string) {
		f.stepped()
		errs = append(errs, os.RemoveAll(filepath.Join(f.path, name)))
	}
	for _, entry := range entries {
		switch name := entry.Name(); {
		case strings.HasPrefix(name, unfinished) || name == newCurrent:
			remove(name)
		case entry.IsDir() && name != now && pairFolder.MatchString(name):
			if info, err := entry.Info(); err == nil {
				former = append(former, info)
			}
		}
	}
	slices.SortFunc(former, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	for i, info := range former {
		if i > 0 {
			remove(info.Name())
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing old pairs: %w", err)
	}
	return nil
}

// stepped calls the test hook.
func (f *folder) stepped() {
	if f.step != nil {
		f.step()
	}
}

// syncFolder makes the names in a folder survive a crash.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
