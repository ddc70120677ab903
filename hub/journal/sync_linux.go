package journal

import (
	"os"
	"syscall"
)

// Sync is fdatasync(2): of the file's own data only its times change, and to write those
// too takes a quarter longer.
func (f osFile) Sync() error {
	for {
		err := syscall.Fdatasync(int(f.Fd()))
		if err != syscall.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
