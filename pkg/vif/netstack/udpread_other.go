//go:build !unix

package netstack

import "net"

// datagramsOf waits for the next datagram of a socket at each call.
func datagramsOf(socket net.Conn) func(*datagram) error {
	return func(d *datagram) (err error) {
		d.n, err = socket.Read(d.room())
		return err
	}
}
