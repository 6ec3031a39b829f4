//go:build linux

package passthrough

import (
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// acceptPause is the pause after an accept that failed because descriptors or memory ran out. The
// clients in the queue of the listener keep waiting.
const acceptPause = 10 * time.Millisecond

// duplicateListener returns a new descriptor of a listener's socket. It sets the options that
// accepted connections inherit.
func duplicateListener(listener *net.TCPListener) (int, error) {
	file, err := listener.File()
	if err != nil {
		return -1, fmt.Errorf("take the listener: %w", err)
	}
	defer file.Close()
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("duplicate the listener: %w", err)
	}
	// File made the socket blocking, for every descriptor of it.
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make the listener non-blocking: %w", err)
	}
	// The app's client is the agent, so the app does not see whether the real client is alive. The
	// agent finds out by keepalives.
	for _, o := range []struct{ level, name, value int }{
		{level: unix.IPPROTO_TCP, name: unix.TCP_NODELAY, value: 1},
		{level: unix.SOL_SOCKET, name: unix.SO_KEEPALIVE, value: 1},
		{level: unix.IPPROTO_TCP, name: unix.TCP_KEEPIDLE, value: 30},
		{level: unix.IPPROTO_TCP, name: unix.TCP_KEEPINTVL, value: 15},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			_ = unix.Close(fd)
			return -1, fmt.Errorf("set an option of the listener: %w", err)
		}
	}
	return fd, nil
}

// accept accepts one client and connects it to the app, or hands it over. It reports whether a
// client was there. It accepts only one, so that the loops share the clients.
func (l *loop) accept(listener *socket) bool {
	fd, _, err := unix.Accept4(listener.fd, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch err { //nolint:errorlint // an errno as it is
	case nil:
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		time.Sleep(acceptPause)
		return false
	default:
		return false
	}
	if l.config.Policy(listener.port) == HandOverAll {
		l.deliver(fd, Handover{Port: listener.port})
		return true
	}
	p := &pair{port: listener.port}
	p.client = socket{fd: fd, pair: p, peer: &p.app}
	p.app = socket{fd: -1, pair: p, peer: &p.client}
	l.pairs++
	l.dialApp(p)
	return true
}

// closeListeners accepts the clients that wait at the listeners, and then closes the listeners.
func (l *loop) closeListeners() {
	for fd, s := range l.sockets {
		if s == nil || s.pair != nil || s.fd == l.wakeFD {
			continue
		}
		for l.accept(s) {
		}
		l.sockets[fd] = nil
		_ = unix.Close(fd)
	}
}
