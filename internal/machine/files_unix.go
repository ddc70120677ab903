//go:build unix

package machine

import "syscall"

// fileLimit returns the limit of open files, or 0 if it is not known.
func fileLimit() uint64 {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 0
	}
	return uint64(files.Cur)
}
