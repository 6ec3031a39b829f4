package netstack

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	neticmp "golang.org/x/net/icmp"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

const (
	// pingIdle ends a flow of pings without traffic. It is also how late an answer may come.
	pingIdle = 10 * time.Second
	maxPings = 512 // how many flows there may be at once
)

// pinger passes ICMP echo requests on with the kernel's ICMP sockets. They need no privilege where
// net.ipv4.ping_group_range has a group of this process; elsewhere no ping is answered. Netstack
// itself would answer for any address, as if every host were there.
type pinger struct {
	forward *forwarder
	stack   *stack.Stack
	own     []netip.Addr // netstack answers for these itself
	log     *slog.Logger
	refused sync.Once

	// mu guards the fields below.
	mu    sync.Mutex
	flows map[pingKey]*neticmp.PacketConn
}

// pingKey is one ping program. The kernel changes its identifier on the way out, and back.
type pingKey struct {
	laptop, to netip.Addr
	id         uint16
}

// attachPinger makes netstack give echo requests to a pinger.
func attachPinger(s *stack.Stack, f *forwarder, own []netip.Addr, log *slog.Logger) {
	p := &pinger{forward: f, stack: s, own: own, log: log, flows: map[pingKey]*neticmp.PacketConn{}}
	s.SetTransportProtocolHandler(icmp.ProtocolNumber4, p.handle)
	s.SetTransportProtocolHandler(icmp.ProtocolNumber6, p.handle)
}

// handle reports whether netstack has nothing more to do for a message.
func (p *pinger) handle(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	payload := stack.PayloadSince(pkt.TransportHeader())
	message := payload.AsSlice()
	laptop, destination := flowEnds(id)
	to := destination.Addr()
	if len(message) < header.ICMPv4MinimumSize || !packet.IsEchoRequest(to, message[0]) || slices.Contains(p.own, to) {
		payload.Release()
		return false
	}
	defer payload.Release()
	if !p.forward.allow(to) {
		return true
	}
	c := p.flow(pingKey{laptop, to, binary.BigEndian.Uint16(message[4:])})
	if c == nil {
		return true
	}
	if p.forward.translate != nil {
		to = p.forward.translate(netip.AddrPortFrom(to, 0)).Addr()
	}
	_ = c.SetReadDeadline(time.Now().Add(pingIdle))
	if _, err := c.WriteTo(message, &net.UDPAddr{IP: to.AsSlice()}); err != nil {
		p.log.Debug("passing a ping on failed", "err", err)
	}
	return true
}

// flow returns the socket for a ping program, or nil.
func (p *pinger) flow(key pingKey) *neticmp.PacketConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.flows[key]; ok {
		return c
	}
	if len(p.flows) >= maxPings || p.forward.ctx.Err() != nil {
		return nil
	}
	network, address := "udp4", "0.0.0.0"
	if key.to.Is6() {
		network, address = "udp6", "::"
	}
	c, err := neticmp.ListenPacket(network, address)
	if err != nil {
		p.refused.Do(func() {
			p.log.Info(
				"pings get no answer: this process may not open ICMP sockets, see net.ipv4.ping_group_range",
				"err",
				err,
			)
		})
		return nil
	}
	p.flows[key] = c
	p.forward.wg.Go(func() {
		stop := context.AfterFunc(p.forward.ctx, func() { _ = c.Close() })
		defer stop()
		defer p.forward.flows.add(key.laptop, func() { _ = c.Close() })()
		p.answer(key, c)
		p.mu.Lock()
		delete(p.flows, key)
		p.mu.Unlock()
		_ = c.Close()
	})
	return c
}

// answer carries replies back until none has come for a while. The kernel sorts replies by
// identifier, so they come only from the host that the laptop pinged.
func (p *pinger) answer(key pingKey, c *neticmp.PacketConn) {
	pooled := datagramBuffers.Get().(*[]byte)
	defer datagramBuffers.Put(pooled)
	for {
		n, _, err := c.ReadFrom(*pooled)
		if err != nil {
			return
		}
		message := (*pooled)[:n]
		if n < header.ICMPv4MinimumSize || !isEchoReply(message[0]) {
			continue
		}
		binary.BigEndian.PutUint16(message[4:], key.id)
		if err := p.send(key, message); err != nil {
			p.log.Debug("sending the answer to a ping failed", "err", err)
		}
	}
}

func isEchoReply(kind byte) bool {
	return kind == byte(header.ICMPv4EchoReply) || kind == byte(header.ICMPv6EchoReply)
}

// send sends a reply to the laptop, with the address of the host that gave it.
func (p *pinger) send(key pingKey, message []byte) tcpip.Error {
	from, to := tcpip.AddrFromSlice(key.to.AsSlice()), tcpip.AddrFromSlice(key.laptop.AsSlice())
	route, err := p.stack.FindRoute(nic, from, to, networkOf(key.to), false)
	if err != nil {
		return err
	}
	defer route.Release()
	protocol, pseudo := icmp.ProtocolNumber4, uint16(0)
	if key.to.Is6() {
		protocol = icmp.ProtocolNumber6
		pseudo = header.PseudoHeaderChecksum(protocol, from, to, uint16(len(message)))
	}
	message[2], message[3] = 0, 0
	binary.BigEndian.PutUint16(message[2:], ^checksum.Checksum(message, pseudo))
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()),
		Payload:            buffer.MakeWithData(message),
	})
	defer pkt.DecRef()
	return route.WritePacket(stack.NetworkHeaderParams{Protocol: protocol, TTL: 64}, pkt)
}
