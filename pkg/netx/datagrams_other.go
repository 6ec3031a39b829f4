//go:build !linux

package netx

import (
	"net"
	"net/netip"
)

// Sender sends datagrams.
type Sender struct{ conn *net.UDPConn }

// NewSender returns a Sender for a socket, which stays the caller's.
func NewSender(c *net.UDPConn) *Sender { return &Sender{c} }

// Send sends b to an address.
func (s *Sender) Send(b, control []byte, to netip.AddrPort) error {
	_, _, err := s.conn.WriteMsgUDPAddrPort(b, control, to)
	return err
}
