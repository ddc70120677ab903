package journal

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

// openFile opens the file so that it can be renamed while it is open, which [os.OpenFile] does not permit.
// It knows the flags that a journal uses: O_RDWR, alone or with O_CREATE and O_TRUNC.
func openFile(path string, flag int) (*os.File, error) {
	name, err := windows.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	disposition := uint32(windows.OPEN_EXISTING)
	switch {
	case flag&os.O_TRUNC != 0:
		disposition = windows.CREATE_ALWAYS
	case flag&os.O_CREATE != 0:
		disposition = windows.OPEN_ALWAYS
	}
	h, err := windows.CreateFile(name, windows.GENERIC_READ|windows.GENERIC_WRITE,
		windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE|windows.FILE_SHARE_DELETE, nil, disposition, windows.FILE_ATTRIBUTE_NORMAL, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(h), path), nil
}

// SyncDir does nothing: Windows cannot sync a folder. After a power failure the folder may lack the journal.
func (osSystem) SyncDir(string) error { return nil }

// lockOffset is the high half of the offset of the byte that TryLock locks. Windows denies other
// processes a locked byte, so it lies far behind the text.
const lockOffset = 1 << 30

// TryLock uses LockFileEx. The lock excludes other processes, and other opens in this one. The
// kernel drops it when the process ends, even if the process is killed.
func (f osFile) TryLock() error {
	err := windows.LockFileEx(windows.Handle(f.Fd()), windows.LOCKFILE_EXCLUSIVE_LOCK|windows.LOCKFILE_FAIL_IMMEDIATELY,
		0, 1, 0, &windows.Overlapped{OffsetHigh: lockOffset})
	if err == windows.ERROR_LOCK_VIOLATION {
		return syscall.EWOULDBLOCK
	}
	return err
}

// noSpace reports whether err says that the disk, or the user's share of it, is full.
func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, windows.ERROR_DISK_FULL) || errors.Is(err, windows.ERROR_HANDLE_DISK_FULL) || errors.Is(err, windows.ERROR_DISK_QUOTA_EXCEEDED)
}
