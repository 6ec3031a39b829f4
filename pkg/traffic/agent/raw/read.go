package raw

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// bufferSize is two records of TLS, without the headers of two frames (pkg/relay/mux).
const bufferSize = 32<<10 - 16

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// readLoop gives use what can be read of c, until c ends or use fails.
func readLoop(c net.Conn, use func([]byte) error) error {
	read := func() error { return readReady(c.(*net.TCPConn), use) }
	if _, ok := c.(*net.TCPConn); !ok {
		pooled := buffers.Get().(*[]byte)
		defer buffers.Put(pooled)
		read = func() error {
			n, err := c.Read(*pooled)
			if n > 0 {
				if uerr := use((*pooled)[:n]); uerr != nil {
					return uerr
				}
			}
			return err
		}
	}
	for {
		if err := read(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// readReady waits until c can be read and only then takes a buffer, so that an idle connection
// holds none.
func readReady(c *net.TCPConn, use func([]byte) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var pooled *[]byte
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		if pooled == nil {
			pooled = buffers.Get().(*[]byte)
		}
		for {
			n, readErr = syscall.Read(int(fd), *pooled)
			if !errors.Is(readErr, syscall.EINTR) {
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
	if pooled != nil {
		defer buffers.Put(pooled)
	}
	switch {
	case err != nil:
		return err
	case readErr != nil:
		return readErr
	case n == 0:
		return io.EOF
	}
	return use((*pooled)[:n])
}
