package cli

// IgnoreFileSizeLimit does nothing: Windows has no limit of a file's size.
func IgnoreFileSizeLimit() {}
