package check

import "golang.org/x/sys/windows"

// Errors of a probe. Package syscall has the names of Unix for them, too, but no system call returns those values.
var (
	errsRefused     = []error{windows.WSAECONNREFUSED}
	errsUnreachable = []error{windows.WSAENETUNREACH, windows.WSAEHOSTUNREACH, windows.WSAEADDRNOTAVAIL}
	errsDropped     = []error{windows.WSAECONNRESET, windows.WSAECONNABORTED}
)

// ownerOf returns 0: Windows has no user ids.
func ownerOf(string) uint32 { return 0 }
