//go:build !unix

package netstack

import "net"

// datagramsOf returns a function that waits for the next datagram of a socket.
func datagramsOf(socket net.Conn) func(*datagram) error {
	return func(d *datagram) (err error) {
		d.n, err = socket.Read(d.room())
		return err
	}
}
