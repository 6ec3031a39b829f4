//go:build unix

package netstack

import (
	"errors"
	"fmt"
	"net"
	"syscall"
)

// datagramsOf returns a function that waits for the next datagram of a socket. It takes a buffer
// only when there is a datagram.
func datagramsOf(socket net.Conn) func(*datagram) error {
	c, ok := socket.(syscall.Conn)
	if !ok {
		return func(*datagram) error { return fmt.Errorf("%T is not a socket", socket) }
	}
	raw, err := c.SyscallConn()
	var into *datagram
	var failed error
	read := func(fd uintptr) bool {
		var n int
		for {
			if n, failed = syscall.Read(int(fd), into.room()); !errors.Is(failed, syscall.EINTR) {
				break
			}
		}
		into.n = max(n, 0)
		if errors.Is(failed, syscall.EAGAIN) {
			into.free()
			return false
		}
		return true
	}
	return func(d *datagram) error {
		if err != nil {
			return err
		}
		into, failed = d, nil
		return errors.Join(raw.Read(read), failed)
	}
}
