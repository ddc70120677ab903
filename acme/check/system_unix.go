//go:build unix

package check

import (
	"os"
	"syscall"
)

// Errors of a probe.
var (
	errsRefused     = []error{syscall.ECONNREFUSED}
	errsUnreachable = []error{syscall.ENETUNREACH, syscall.EHOSTUNREACH, syscall.EADDRNOTAVAIL}
	errsDropped     = []error{syscall.ECONNRESET, syscall.EPIPE}
)

// ownerOf returns the user id that owns path, or 0 if it is not known.
func ownerOf(path string) uint32 {
	if info, err := os.Stat(path); err == nil {
		if sys, ok := info.Sys().(*syscall.Stat_t); ok {
			return sys.Uid
		}
	}
	return 0
}
