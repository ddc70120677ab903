package redistest

import "syscall"

// A test that is killed leaves no server behind.
var dieWithParent = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
