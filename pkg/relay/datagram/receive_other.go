//go:build !unix

package datagram

import "net"

// Receive calls use with each datagram that arrives on a connected socket. It ends when the socket
// is closed, and also when a datagram was refused, because a read does not tell the two apart here.
func Receive(c net.Conn, use func([]byte), refused func()) error {
	for b := make([]byte, MaxPayload); ; {
		n, err := c.Read(b)
		if err != nil {
			refused()
			return err
		}
		use(b[:n])
	}
}
