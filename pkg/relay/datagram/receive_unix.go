//go:build unix

package datagram

import (
	"errors"
	"net"
	"sync"
	"syscall"
)

var buffers = sync.Pool{New: func() any { b := make([]byte, MaxPayload); return &b }}

// Receive calls use with each datagram that arrives on a connected socket, and refused when the
// peer's machine has reported that nothing listens there. It ends when the socket is closed.
//
// It takes a buffer of 64 KiB from a pool only while there is a datagram, because most flows are
// silent most of the time.
func Receive(c net.Conn, use func([]byte), refused func()) error {
	s, ok := c.(syscall.Conn)
	if !ok {
		return errors.New("datagrams can only be received from a socket")
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	for {
		var n int
		var pooled *[]byte
		var readErr error
		err := raw.Read(func(fd uintptr) bool {
			if pooled == nil {
				pooled = buffers.Get().(*[]byte)
			}
			for {
				if n, readErr = syscall.Read(int(fd), *pooled); !errors.Is(readErr, syscall.EINTR) {
					break
				}
			}
			if errors.Is(readErr, syscall.EAGAIN) {
				buffers.Put(pooled)
				pooled = nil
				return false
			}
			return true
		})
		switch {
		case err != nil:
		case errors.Is(readErr, syscall.ECONNREFUSED):
			refused()
		case readErr != nil:
			err = readErr
		default:
			use((*pooled)[:n])
		}
		if pooled != nil {
			buffers.Put(pooled)
		}
		if err != nil {
			return err
		}
	}
}
