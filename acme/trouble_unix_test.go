//go:build unix

package acme

import (
	"errors"
	"syscall"
	"testing"
	"time"
)

// A file that cannot be read at the moment is not treated as damaged.
func TestTooManyOpenFiles(t *testing.T) { // not parallel: it concerns the whole process
	dir := t.TempDir()
	a, b := prepareSchedule(t, dir, &fakeCA{}), prepareSchedule(t, dir, &fakeCA{})
	st := a.site.authorities[0].store
	if err := storeCertificate(st, "counter.test", testPair(t, 90*day)); err != nil {
		t.Fatal(err)
	}
	if err := (&plan{Failures: 3}).save(st, "counter.test", time.Now()); err != nil {
		t.Fatal(err)
	}
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	none := old
	none.Cur = 0
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	err := b.look(b.site)
	syscall.Setrlimit(syscall.RLIMIT_NOFILE, &old)
	if !errors.Is(err, syscall.EMFILE) {
		t.Errorf("look = %v, want EMFILE", err)
	}
	if err := b.look(b.site); err != nil || b.site.current.Load() == nil || b.site.authorities[0].plan.Failures != 3 {
		t.Errorf("look, with files to be had = %v, certificate %v, plan %+v", err, b.site.current.Load(), b.site.authorities[0].plan)
	}
	if all := b.log.logged("damaged"); len(all) != 0 {
		t.Errorf("logged %v", all)
	}
}
