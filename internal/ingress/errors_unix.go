//go:build unix

package ingress

import "syscall"

const addressInUse = syscall.EADDRINUSE

// noListener are the errors of accept for a socket that is closed or does not listen.
var noListener = []error{syscall.EBADF, syscall.EINVAL, syscall.ENOTSOCK}
