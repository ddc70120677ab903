package ingress

import "golang.org/x/sys/windows"

// Package syscall has the names of Unix for these errors, too, but no system call returns those values.

const addressInUse = windows.WSAEADDRINUSE

// noListener are the errors of accept for a socket that is closed or does not listen.
var noListener = []error{windows.WSAEBADF, windows.WSAEINVAL, windows.WSAENOTSOCK}
