package ipc

// ownDirectory accepts every directory: rootless mode, which needs the check, exists only on Linux.
func ownDirectory(string) bool { return true }

func lockDirectory(string) (release func(), err error) { return func() {}, nil }
