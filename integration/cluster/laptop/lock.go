package laptop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// retry is how often a lock that another process has is tried again.
const retry = 100 * time.Millisecond

// take waits for a file's lock. The kernel gives it up when the process that has it ends, however
// it ends, so that what a crash left is told apart from what is in use.
func take(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := tryTake(path)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return f, err
		}
		if raw, err := os.ReadFile(path); err == nil && string(raw) == strconv.Itoa(os.Getpid()) {
			return nil, errors.New("this process has it already: close it first or take another number")
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("another process has it: %w", ctx.Err())
		case <-time.After(retry):
		}
	}
}

func tryTake(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open the lock (is the local cluster up?): %w", err)
	}
	if err := lockAndSign(f); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func lockAndSign(f *os.File) error {
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	// The one who had it may have removed the file meanwhile: then this is a lock on nothing, and
	// the next one would not see it.
	mine, err := f.Stat()
	if err != nil {
		return err
	}
	if named, err := os.Stat(f.Name()); err != nil || !os.SameFile(mine, named) {
		return fmt.Errorf("lock %s: it was replaced: %w", f.Name(), unix.EWOULDBLOCK)
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return err
}
