package netx

import (
	"errors"
	"net"
	"syscall"
)

// Readable reports whether a read from the socket below c would return at once, with bytes, an end
// or an error. It says nothing about bytes that a layer above the socket, such as TLS, has
// buffered. Where it cannot tell, it is true.
func Readable(c net.Conn) (readable bool) {
	s, ok := Below(c).(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return true
	}
	err = raw.Control(func(fd uintptr) {
		_, err := Peek(fd, make([]byte, 1))
		readable = !errors.Is(err, syscall.EAGAIN)
	})
	return readable || err != nil
}
