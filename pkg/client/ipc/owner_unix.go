//go:build unix

package ipc

import (
	"errors"
	"os"
	"syscall"
)

// ownDirectory reports whether only this user can have created files in a directory.
func ownDirectory(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0 {
		return false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}

// lockDirectory waits for an exclusive lock on a directory. release unlocks it.
func lockDirectory(directory string) (release func(), err error) {
	d, err := os.Open(directory)
	if err != nil {
		return nil, err
	}
	for {
		if err = syscall.Flock(int(d.Fd()), syscall.LOCK_EX); err == nil {
			return func() { _ = d.Close() }, nil
		}
		if !errors.Is(err, syscall.EINTR) {
			_ = d.Close()
			return nil, err
		}
	}
}
