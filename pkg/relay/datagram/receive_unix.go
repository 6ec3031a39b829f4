//go:build unix

package datagram

import (
	"errors"
	"net"
	"sync"
	"syscall"
)

var buffers = sync.Pool{New: func() any { b := make([]byte, MaxPayload); return &b }}

// Receive gives each datagram that comes on a connected socket to use, and says by refused that a peer's machine has nobody for what was sent
// last. It ends when the socket is closed. It waits without a buffer, because most flows are silent most of the time.
func Receive(c net.Conn, use func([]byte), refused func()) error {
	s, ok := c.(syscall.Conn)
	if !ok {
		return errors.New("datagrams come from sockets only")
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
