//go:build !unix

package datagram

import "net"

// Receive gives each datagram that comes on a connected socket to use. It ends when the socket is closed, or nobody is there for what is sent.
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
