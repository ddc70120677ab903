package redistest

import "syscall"

// Windows has neither signal, so [os.Process.Signal] fails.
const (
	sigStop     = syscall.Signal(-1)
	sigContinue = syscall.Signal(-1)
)

var dieWithParent *syscall.SysProcAttr
