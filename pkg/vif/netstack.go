package vif

import (
	"context"
	"fmt"
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
)

const (
	nic = tcpip.NICID(1)
	// netstackQueue is how many packets may wait between netstack and WireGuard; the TCP of netstack takes more as loss.
	netstackQueue = 2048
	// timeWait is how long netstack remembers a connection that it was the first to close. It has to be short: netstack drops
	// a SYN that meets a remembered connection, and a laptop uses its ports again within seconds. What TIME-WAIT is for
	// (RFC 9293, 3.6.1), packets of the old connection that come late, WireGuard's replay protection and the order of a stream
	// keep away.
	timeWait = 5 * time.Millisecond
	// maxRTO is the longest pause between two attempts to send a segment: what waits goes on so soon after a laptop that slept is
	// back. maxRetries keep it waiting for longer than the Session of a silent laptop lives; then the flow is reset.
	maxRTO     = 2 * time.Second
	maxRetries = 1000
)

// netstackTUN is a tun.Device whose other side is a gVisor network stack.
type netstackTUN struct {
	mtu int
	// takesLarge says whether who has an address takes large packets; nil for nobody.
	takesLarge func(netip.Addr) bool
	left       segments // of a large packet for somebody who does not
	whole      []byte   // what is left of it

	link   *ackDelayer
	stack  *stack.Stack
	events chan tun.Event
	ctx    context.Context // ended by Close; frees Read
	cancel context.CancelFunc
	once   sync.Once
}

// newNetstack makes a stack that owns addresses, and takes packets for any other address too (they are the forwarders').
func newNetstack(addresses []netip.Addr, mtu int, takesLarge func(netip.Addr) bool) (*netstackTUN, error) {
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	sack := tcpip.TCPSACKEnabled(true)
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 8 << 20}
	send := tcpip.TCPSendBufferSizeRangeOption{Min: 4 << 10, Default: 1 << 20, Max: 8 << 20}
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	wait := tcpip.TCPTimeWaitTimeoutOption(timeWait)
	// Netstack's RACK waits for a time-out for each segment when many are lost at once, as at a change of path. Without it SACK
	// repairs all within some round trips.
	recovery := tcpip.TCPRecovery(0)
	longest := tcpip.TCPMaxRTOOption(maxRTO)
	retries := tcpip.TCPMaxRetriesOption(maxRetries)
	for _, option := range []tcpip.SettableTransportProtocolOption{&sack, &receive, &send, &moderate, &wait, &recovery, &longest, &retries} {
		if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, option); err != nil {
			return nil, fmt.Errorf("set a TCP option of netstack: %s", err)
		}
	}
	link := newAckDelayer(channel.New(netstackQueue, uint32(mtu), ""))
	// What comes is whole: WireGuard has seen to that.
	link.LinkEPCapabilities |= stack.CapabilityRXChecksumOffload
	if takesLarge != nil {
		link.SupportedGSOKind = stack.HostGSOSupported
	}
	if err := s.CreateNIC(nic, &largeEndpoint{link}); err != nil {
		return nil, fmt.Errorf("make netstack's interface: %s", err)
	}
	// Flows to any address are ours to forward (promiscuous), and their answers leave with that address (spoofing).
	if err := s.SetPromiscuousMode(nic, true); err != nil {
		return nil, fmt.Errorf("make netstack accept all addresses: %s", err)
	}
	if err := s.SetSpoofing(nic, true); err != nil {
		return nil, fmt.Errorf("make netstack answer for all addresses: %s", err)
	}
	for _, a := range addresses {
		protocol := tcpip.ProtocolAddress{Protocol: networkOf(a), AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.AddProtocolAddress(nic, protocol, stack.AddressProperties{}); err != nil {
			return nil, fmt.Errorf("give netstack the address %s: %s", a, err)
		}
	}
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: nic}, {Destination: header.IPv6EmptySubnet, NIC: nic}})
	t := &netstackTUN{mtu: mtu, takesLarge: takesLarge, link: link, stack: s, events: make(chan tun.Event, 1)}
	t.ctx, t.cancel = context.WithCancel(context.Background())
	t.events <- tun.EventUp
	return t, nil
}

func networkOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// largeEndpoint lets netstack make large packets, of as many whole segments as fit.
type largeEndpoint struct{ *ackDelayer }

func (e *largeEndpoint) GSOMaxSize() uint32 {
	const headers = header.IPv4MinimumSize + header.TCPMinimumSize + 12 // with the timestamps that each segment has
	mss := e.MTU() - headers
	return (maxLarge-headers)/mss*mss + header.TCPTotalHeaderMaximumSize + 1
}

// Read waits for one packet and takes along what else is queued.
func (t *netstackTUN) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	for n < len(bufs) {
		if t.left.packet != nil {
			if sizes[n] = t.left.next(bufs[n][offset:]); sizes[n] == 0 {
				t.left = segments{}
			} else {
				n++
			}
			continue
		}
		packet := t.link.Read()
		if packet == nil {
			if n > 0 {
				return n, nil
			}
			if packet = t.link.ReadContext(t.ctx); packet == nil {
				return 0, os.ErrClosed
			}
		}
		if sizes[n] = t.take(packet, bufs[n][offset:]); sizes[n] > 0 {
			n++
		}
		packet.DecRef()
	}
	return n, nil
}

// take copies a packet, with its checksum, and returns its length; 0 when it has to be cut first.
func (t *netstackTUN) take(packet *stack.PacketBuffer, to []byte) int {
	large := packet.Size() > t.mtu
	if large && t.takesLarge != nil {
		address := packet.Network().DestinationAddress()
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
	for _, part := range packet.AsSlices() {
		size += copy(to[size:], part)
	}
	switch gso := packet.GSOOptions; {
	case large:
		t.left, _ = cutLarge(to[:size], int(gso.MSS))
		return 0
	case size <= t.mtu && gso.Type != stack.GSONone && gso.NeedsCsum:
		finishChecksum(to[:size], int(gso.L3HdrLen), int(gso.CsumOffset))
	}
	return size
}

func (t *netstackTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		packet := b[offset:]
		if len(packet) == 0 {
			continue
		}
		protocol := header.IPv4ProtocolNumber
		if packet[0]>>4 == 6 {
			protocol = header.IPv6ProtocolNumber
		}
		pkb := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
		t.link.InjectInbound(protocol, pkb)
		pkb.DecRef()
	}
	return len(bufs), nil
}

func (t *netstackTUN) Close() error {
	t.once.Do(func() {
		t.cancel()
		t.stack.Close()
		t.link.Close()
		close(t.events)
	})
	return nil
}

func (t *netstackTUN) File() *os.File           { return nil }
func (t *netstackTUN) MTU() (int, error)        { return t.mtu, nil }
func (t *netstackTUN) Name() (string, error)    { return "netstack", nil }
func (t *netstackTUN) Events() <-chan tun.Event { return t.events }
func (t *netstackTUN) BatchSize() int           { return batch }
