package redistest

import "syscall"

// dieWithParent makes the kernel kill the server when the test is killed.
var dieWithParent = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
