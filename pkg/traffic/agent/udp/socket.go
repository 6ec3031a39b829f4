package udp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// Socket receives datagrams of one IP family on all addresses, and tells which address each was
// sent to.
type Socket struct {
	net.PacketConn
	// Read returns the address that a datagram came from, and the one that it was sent to.
	Read func(b []byte) (n int, from net.Addr, to net.IP, err error)
	// Write sends a datagram from an address of the pod.
	Write func(b []byte, to net.Addr, from net.IP) error
}

// Listen returns the sockets of a port, for each IP family of the pod one. The caller closes them.
// The error is nil if there is one.
func Listen(ctx context.Context, port uint16) (all []*Socket, err error) {
	for _, family := range []struct {
		network string
		setUp   func(*Socket) error
	}{{"udp4", (*Socket).useIPv4}, {"udp6", (*Socket).useIPv6}} {
		var config net.ListenConfig
		c, lerr := config.ListenPacket(ctx, family.network, ":"+strconv.Itoa(int(port)))
		if lerr != nil {
			err = errors.Join(err, lerr)
			continue
		}
		s := &Socket{PacketConn: c}
		if serr := family.setUp(s); serr != nil {
			_ = c.Close()
			err = errors.Join(err, serr)
			continue
		}
		all = append(all, s)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("listen for datagrams: %w", err)
	}
	return all, nil
}

func (s *Socket) useIPv4() error {
	p := ipv4.NewPacketConn(s.PacketConn)
	s.Read = func(b []byte) (int, net.Addr, net.IP, error) {
		n, control, from, err := p.ReadFrom(b)
		if control == nil {
			return n, from, nil, err
		}
		return n, from, control.Dst, err
	}
	s.Write = func(b []byte, to net.Addr, from net.IP) error {
		_, err := p.WriteTo(b, &ipv4.ControlMessage{Src: from}, to)
		return err
	}
	return p.SetControlMessage(ipv4.FlagDst, true)
}

func (s *Socket) useIPv6() error {
	p := ipv6.NewPacketConn(s.PacketConn)
	s.Read = func(b []byte) (int, net.Addr, net.IP, error) {
		n, control, from, err := p.ReadFrom(b)
		if control == nil {
			return n, from, nil, err
		}
		return n, from, control.Dst, err
	}
	s.Write = func(b []byte, to net.Addr, from net.IP) error {
		_, err := p.WriteTo(b, &ipv6.ControlMessage{Src: from}, to)
		return err
	}
	return p.SetControlMessage(ipv6.FlagDst, true)
}
