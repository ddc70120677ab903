package machine

// fileLimit returns 0: Windows sets no limit for a process.
func fileLimit() uint64 { return 0 }
