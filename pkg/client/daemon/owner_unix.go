//go:build unix

package daemon

import (
	"errors"
	"os"
	"syscall"
)

// ownDirectory says whether only this user can have put something into a directory.
func ownDirectory(path string) bool {
	info, err := os.Lstat(path)
	if err != nil || !info.IsDir() || info.Mode().Perm()&0o022 != 0 {
		return false
	}
	s, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) == os.Geteuid()
}

// alone waits until no other process is alone in a directory. release ends it.
func alone(directory string) (release func(), err error) {
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
