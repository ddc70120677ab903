//go:build !linux

package redistest

import "syscall"

var dieWithParent *syscall.SysProcAttr
