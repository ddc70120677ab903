//go:build unix && !linux

package redistest

import "syscall"

// dieWithParent is for Linux only: elsewhere a killed test leaves its server running.
var dieWithParent *syscall.SysProcAttr
