package netstack

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

const (
	nic = tcpip.NICID(1)
	// netstackQueue is how many packets may wait between netstack and WireGuard. Netstack's TCP
	// takes further packets for lost.
	netstackQueue = 2048
	// timeWait is how long netstack remembers a connection that it was the first to close. It has
	// to be short: netstack drops a SYN that meets a remembered connection, and a laptop uses its
	// ports again within seconds. TIME-WAIT exists to keep late packets of the old connection away
	// (RFC 9293, 3.6.1); here WireGuard's replay protection and the order of a stream do that.
	timeWait = 5 * time.Millisecond
	// maxRTO is the longest pause between two attempts to send a segment. After a laptop has slept,
	// waiting segments go on within that time. maxRetries keeps them waiting for longer than the
	// Session of a silent laptop lives; then the flow is reset.
	maxRTO     = 2 * time.Second
	maxRetries = 1000
)

// Config describes a network stack, and how it treats the flows that come to it.
type Config struct {
	// Addresses are the stack's own. It answers pings to them itself; flows to all other addresses
	// are forwarded.
	Addresses []netip.Addr
	// MTU is that of the link, in bytes.
	MTU int
	// TakesLarge reports whether the host with an address takes large packets; nil when none does.
	TakesLarge func(netip.Addr) bool
	// Allow reports whether a flow may go to a destination. It is required, and is called from many
	// goroutines.
	Allow func(netip.Addr) bool
	// Translate returns the address to dial in a destination's place; nil dials the destination
	// itself.
	Translate func(netip.AddrPort) netip.AddrPort
	// Dialer opens the sockets of forwarded flows.
	Dialer net.Dialer
	// DialAttempts is how many dials of one destination there may be at a time; 0 is 1.
	DialAttempts int
	// MaxUDPFlows is how many flows of datagrams each source may have; 0 is for the default.
	MaxUDPFlows int
	// Log is required.
	Log *slog.Logger
}

// Stack is a tun.Device whose other side is a gVisor network stack. The stack ends the flows that
// come to it and forwards them with ordinary sockets.
type Stack struct {
	mtu int
	// takesLarge is Config.TakesLarge.
	takesLarge func(netip.Addr) bool
	// Read has not handed these on yet: the segments of a large packet, and that packet. They
	// belong to the goroutine of Read.
	pending packet.Segmenter
	whole   []byte

	link   *delayedAcks
	stack  *stack.Stack
	events chan tun.Event
	ctx    context.Context // Close ends it, which frees Read
	cancel context.CancelFunc
	once   sync.Once

	forward *forwarder
	dialed  flowTable // the connections that Dial opened
	stop    context.CancelFunc
}

// New starts a stack. The caller, or WireGuard's device on its behalf, calls Close, and then the
// caller calls Wait. After an error there is nothing to close.
func New(c Config) (*Stack, error) {
	s, err := newGVisor()
	if err != nil {
		return nil, err
	}
	link := newDelayedAcks(channel.New(netstackQueue, uint32(c.MTU), ""))
	// Incoming packets are intact: WireGuard has seen to that.
	link.LinkEPCapabilities |= stack.CapabilityRXChecksumOffload
	if c.TakesLarge != nil {
		link.SupportedGSOKind = stack.HostGSOSupported
	}
	if err := attachLink(s, link, c.Addresses); err != nil {
		s.Close()
		return nil, err
	}
	t := &Stack{mtu: c.MTU, takesLarge: c.TakesLarge, link: link, stack: s, events: make(chan tun.Event, 1)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.events <- tun.EventUp
	ctx, stop := context.WithCancel(context.Background())
	t.stop = stop
	t.forward = &forwarder{ctx: ctx, allow: c.Allow, translate: c.Translate, dialer: c.Dialer, attempts: c.DialAttempts}
	t.forward.datagrams.limit = c.MaxUDPFlows
	t.forward.attach(s)
	attachPinger(s, t.forward, c.Addresses, c.Log)
	return t, nil
}

// newGVisor makes a stack without interfaces.
func newGVisor() (*stack.Stack, error) {
	s := stack.New(stack.Options{
		NetworkProtocols: []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{
			tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6,
		},
	})
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 8 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 8 << 20}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	// When many segments are lost at once, as at a change of path, netstack's RACK waits for a
	// time-out for each of them. Without RACK, SACK repairs all of them within some round trips.
	recovery := tcpip.TCPRecovery(0)
	longest := tcpip.TCPMaxRTOOption(maxRTO)
	retries := tcpip.TCPMaxRetriesOption(maxRetries)
	options := []tcpip.SettableTransportProtocolOption{
		&sack, &receive, &send, &moderate, &wait, &recovery, &longest, &retries,
	}
	for _, option := range options {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return nil, fmt.Errorf("set a TCP option of netstack: %s", err)
		}
	}
	return s, nil
}

// attachLink gives a stack its only interface.
func attachLink(s *stack.Stack, link *delayedAcks, addresses []netip.Addr) error {
	if err := s.CreateNIC(nic, &largeEndpoint{link}); err != nil {
		return fmt.Errorf("make netstack's interface: %s", err)
	}
	// The stack takes flows to any address (promiscuous), and answers with that address (spoofing).
	if err := s.SetPromiscuousMode(nic, true); err != nil {
		return fmt.Errorf("make netstack accept all addresses: %s", err)
	}
	if err := s.SetSpoofing(nic, true); err != nil {
		return fmt.Errorf("make netstack answer for all addresses: %s", err)
	}
	for _, a := range addresses {
		protocol := tcpip.ProtocolAddress{
			Protocol:          networkOf(a),
			AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}
		if err := s.AddProtocolAddress(nic, protocol, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("give netstack the address %s: %s", a, err)
		}
	}
	s.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

func networkOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// largeEndpoint lets netstack make large packets, of as many whole segments as fit.
type largeEndpoint struct{ *delayedAcks }

func (e *largeEndpoint) GSOMaxSize() uint32 {
	const headers = header.IPv4MinimumSize + header.TCPMinimumSize + 12 // with a timestamp in each segment
	mss := e.MTU() - headers
	return (packet.MaxLarge-headers)/mss*mss + header.TCPTotalHeaderMaximumSize + 1
}

// Read waits for one packet, and takes all other queued packets along as far as there is room.
func (t *Stack) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	for n < len(bufs) {
		if t.pending.Active() {
			if sizes[n] = t.pending.Next(bufs[n][offset:]); sizes[n] == 0 {
				t.pending = packet.Segmenter{}
			} else {
				n++
			}
			continue
		}
		pkt := t.link.Read()
		if pkt == nil {
			if n > 0 {
				return n, nil
			}
			if pkt = t.link.ReadContext(t.ctx); pkt == nil {
				return 0, os.ErrClosed
			}
		}
		if sizes[n] = t.take(pkt, bufs[n][offset:]); sizes[n] > 0 {
			n++
		}
		pkt.DecRef()
	}
	return n, nil
}

// take copies a packet and completes its checksum. It returns the packet's length, 0 when the
// packet has to be cut first.
func (t *Stack) take(pkt *stack.PacketBuffer, to []byte) int {
	large := pkt.Size() > t.mtu
	if large && t.takesLarge != nil {
		address := pkt.Network().DestinationAddress()
		if a, ok := netip.AddrFromSlice(address.AsSlice()); !ok || !t.takesLarge(a) {
			if t.whole == nil {
				t.whole = make([]byte, 1<<16)
			}
			to = t.whole
		} else {
			large = false
		}
	}
	size := 0
	for _, part := range pkt.AsSlices() {
		size += copy(to[size:], part)
	}
	switch gso := pkt.GSOOptions; {
	case large:
		t.pending, _ = packet.NewSegmenter(to[:size], int(gso.MSS))
		return 0
	case size <= t.mtu && gso.Type != stack.GSONone && gso.NeedsCsum:
		packet.FinishChecksum(to[:size], int(gso.L3HdrLen), int(gso.CsumOffset))
	}
	return size
}

func (t *Stack) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		pkt := b[offset:]
		if len(pkt) == 0 {
			continue
		}
		protocol := header.IPv4ProtocolNumber
		if pkt[0]>>4 == 6 {
			protocol = header.IPv6ProtocolNumber
		}
		pkb := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(pkt)})
		t.link.InjectInbound(protocol, pkb)
		pkb.DecRef()
	}
	return len(bufs), nil
}

func (t *Stack) Close() error {
	t.once.Do(func() {
		t.cancel()
		t.stack.Close()
		t.link.Close()
		close(t.events)
	})
	return nil
}

// ResetFlows resets the flows that came from an address.
func (t *Stack) ResetFlows(from netip.Addr) { t.forward.flows.reset(from) }

// ResetDialed resets the connections that Dial opened to an address.
func (t *Stack) ResetDialed(to netip.Addr) { t.dialed.reset(to) }

// UDPFlows is the number of flows of datagrams from an address.
func (t *Stack) UDPFlows(from netip.Addr) int { return t.forward.datagrams.count(from) }

// Stop resets all flows and takes no new ones. Call it before Close, so that the resets still
// leave.
func (t *Stack) Stop() {
	t.stop()
	t.forward.flows.reset(netip.Addr{})
	t.dialed.reset(netip.Addr{})
}

// Wait waits until everything has ended after Stop and Close.
func (t *Stack) Wait() {
	t.forward.wg.Wait()
	t.stack.Wait()
}

func (t *Stack) File() *os.File           { return nil }
func (t *Stack) MTU() (int, error)        { return t.mtu, nil }
func (t *Stack) Name() (string, error)    { return "netstack", nil }
func (t *Stack) Events() <-chan tun.Event { return t.events }
func (t *Stack) BatchSize() int           { return packet.BatchSize }
