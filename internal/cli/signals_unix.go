//go:build unix

package cli

import (
	"os/signal"
	"syscall"
)

// IgnoreFileSizeLimit makes a write over the limit of a file's size (ulimit -f, systemd's LimitFSIZE)
// fail like any other write, in place of ending the process.
func IgnoreFileSizeLimit() { signal.Ignore(syscall.SIGXFSZ) }
