//go:build !linux

package netx

import (
	"net"
	"net/netip"
)

// Sender sends datagrams.
type Sender struct{ conn *net.UDPConn }

// NewSender sends from a socket.
func NewSender(c *net.UDPConn) *Sender { return &Sender{c} }

// Send sends b.
func (s *Sender) Send(b, control []byte, to netip.AddrPort) error {
	_, _, err := s.conn.WriteMsgUDPAddrPort(b, control, to)
	return err
}
