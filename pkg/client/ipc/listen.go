package ipc

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// ErrDaemonRuns means that another daemon already listens on the socket.
var ErrDaemonRuns = errors.New("a daemon is already running")

// Listen opens the daemon's socket, which only the daemon's own user may connect to. The caller
// closes the listener. Of two daemons that start at once exactly one succeeds, because Listen holds
// a lock on the run directory: without it each would take the other's socket for that of a dead
// daemon.
//
// prepare runs when it is certain that no other daemon is there and before this one can be reached.
// Its error is returned.
func Listen(p Paths, prepare func() error) (net.Listener, error) {
	if err := p.MakeDirectories(); err != nil {
		return nil, err
	}
	if release, err := lockDirectory(p.Run); err == nil { // not every file system supports locks
		defer release()
	}
	if c, err := net.Dial("unix", p.Socket()); err == nil {
		_ = c.Close()
		return nil, ErrDaemonRuns
	}
	if err := prepare(); err != nil {
		return nil, err
	}
	_ = os.Remove(p.Socket())
	listener, err := net.Listen("unix", p.Socket())
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", p.Socket(), err)
	}
	if err := os.Chmod(p.Socket(), 0o600); err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("protect the socket: %w", err)
	}
	return listener, nil
}
