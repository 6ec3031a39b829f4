package mux

import (
	"errors"
	"net"
	"syscall"

	"github.com/detour-dev/detour/pkg/netx"
)

// readable says whether a socket, below whatever is on it, has something to say.
func readable(c net.Conn) (is bool) {
	s, ok := netx.Below(c).(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		_, err := netx.Peek(fd, make([]byte, 1))
		is = !errors.Is(err, syscall.EAGAIN)
	})
	return is || err != nil
}
