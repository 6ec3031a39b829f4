package tundev

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

var (
	laptop4, pod4 = netip.MustParseAddr("100.64.0.2"), netip.MustParseAddr("10.42.0.7")
	laptop6, pod6 = netip.MustParseAddr("fd00::2"), netip.MustParseAddr("fd42::7")
)

const (
	openPort     = 7474
	fin          = header.TCPFlagFin
	syn          = header.TCPFlagSyn
	ack          = header.TCPFlagAck
	rst          = header.TCPFlagRst
	now          = 1_800_000_000
	sentFrom     = 40000 // the laptop sent a datagram from here just now
	sentLongAgo  = 40001
	sentANewDay  = 40002 // the packet's time was read a moment before the datagram's
	neverSent    = 40003
	ipv4Fragment = 0x2000 // more fragments follow
)

// The cluster can send the laptop only answers, and connections to the relay's port.
func TestFirewallAdmits(t *testing.T) {
	for name, c := range map[string]struct {
		packet []byte
		want   bool
	}{
		"SYN to the open port":                    {packet: tcpPacket(4, openPort, syn), want: true},
		"SYN to another port":                     {packet: tcpPacket(4, 22, syn), want: false},
		"SYN to another port, IPv6":               {packet: tcpPacket(6, 22, syn), want: false},
		"SYN to the open port, IPv6":              {packet: tcpPacket(6, openPort, syn), want: true},
		"SYN and FIN, a scanner's":                {packet: tcpPacket(4, 22, syn|fin), want: false},
		"SYN with ECN":                            {packet: tcpPacket(4, 22, syn|0xc0), want: false},
		"SYN to port 0":                           {packet: tcpPacket(4, 0, syn), want: false},
		"answer to the laptop's SYN":              {packet: tcpPacket(4, 51234, syn|ack), want: true},
		"segment of an open connection":           {packet: tcpPacket(4, 51234, ack), want: true},
		"end of a connection":                     {packet: tcpPacket(6, 51234, fin|ack), want: true},
		"refusal":                                 {packet: tcpPacket(4, 51234, rst|ack), want: true},
		"SYN behind IPv4 options":                 {packet: withIPv4Options(tcpPacket(4, 22, syn)), want: false},
		"SYN to the open port behind options":     {packet: withIPv4Options(tcpPacket(4, openPort, syn)), want: true},
		"SYN behind an IPv6 extension header":     {packet: withExtension(tcpPacket(6, 22, syn), 60), want: false},
		"SYN behind IPv6 hop-by-hop options":      {packet: withExtension(tcpPacket(6, 22, syn), 0), want: false},
		"SYN behind an IPv6 fragment header":      {packet: withExtension(tcpPacket(6, 22, syn), 44), want: false},
		"later fragment, IPv6":                    {packet: withExtension(udpPacket(6, neverSent), 44), want: true},
		"first fragment without a question, IPv6": {packet: firstFragment(udpPacket(6, neverSent)), want: false},
		"first fragment of an answer, IPv6":       {packet: firstFragment(udpPacket(6, sentFrom)), want: true},
		"first fragment of a SYN, IPv6":           {packet: firstFragment(tcpPacket(6, 22, syn)), want: false},
		"first fragment without a question": {
			packet: fragment(udpPacket(4, neverSent), ipv4Fragment),
			want:   false,
		},
		"first fragment of an answer":     {packet: fragment(udpPacket(4, sentFrom), ipv4Fragment), want: true},
		"answer to a datagram":            {packet: udpPacket(4, sentFrom), want: true},
		"answer to a datagram, IPv6":      {packet: udpPacket(6, sentFrom), want: true},
		"answer within the same moment":   {packet: udpPacket(4, sentANewDay), want: true},
		"answer that comes much too late": {packet: udpPacket(4, sentLongAgo), want: false},
		"datagram without a question":     {packet: udpPacket(4, neverSent), want: false},
		"datagram to the open port":       {packet: udpPacket(4, openPort), want: false},
		"first fragment of a SYN":         {packet: fragment(tcpPacket(4, 22, syn), ipv4Fragment), want: false},
		"later fragment":                  {packet: fragment(tcpPacket(4, 51234, ack), 1), want: false},
		"later fragment of an answer":     {packet: fragment(udpPacket(4, sentFrom), 185), want: true},
		"later fragment of a ping":        {packet: fragment(icmpPacket(4), 1), want: false},
		"TCP header cut short":            {packet: tcpPacket(4, openPort, syn)[:20+13], want: false},
		"UDP header cut short":            {packet: udpPacket(4, sentFrom)[:20+3], want: false},
		"ping":                            {packet: icmpPacket(4), want: true},
		"ping, IPv6":                      {packet: icmpPacket(6), want: true},
		"SCTP":                            {packet: podPacket(4, 132, make([]byte, 12)), want: false},
		"IP in IP":                        {packet: podPacket(4, 4, tcpPacket(4, 22, syn)), want: false},
		"GRE, IPv6":                       {packet: podPacket(6, 47, make([]byte, 8)), want: false},
		"empty":                           {packet: nil, want: false},
		"IP version 5":                    {packet: append([]byte{0x50}, make([]byte, 60)...), want: false},
		"header length below the least": {
			packet: append([]byte{0x44}, tcpPacket(4, openPort, syn)[1:]...),
			want:   false,
		},
		"header longer than the packet": {
			packet: append([]byte{0x4f}, tcpPacket(4, 51234, ack)[1:]...),
			want:   false,
		},
		"IPv6 header cut short": {packet: tcpPacket(6, openPort, syn)[:39], want: false},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFilter(openPort)
			assert.Equal(t, c.want, f.admits(c.packet, now))
		})
	}
	t.Run("no port is open unless one is named", func(t *testing.T) {
		f := newFilter(0)
		assert.False(t, f.admits(tcpPacket(4, openPort, syn), now))
		assert.False(t, f.admits(tcpPacket(4, 0, syn), now))
		assert.True(t, f.admits(tcpPacket(4, 51234, syn|ack), now))
	})
}

func newFilter(port uint16) *Firewall {
	f := &Firewall{port: port}
	f.sentAt[sentFrom].Store(now)
	f.sentAt[sentLongAgo].Store(now - udpMemory)
	f.sentAt[sentANewDay].Store(now + 1)
	return f
}

// The firewall learns from the packets that the laptop sends, and passes on exactly the admitted
// packets of a batch.
func TestFirewallLearnsFromSentPackets(t *testing.T) {
	const offset = 16
	kernel := &kernelSide{sends: udpPacketFrom(4, 53535)}
	f := &Firewall{Device: kernel, port: openPort}
	batch := func(packets ...[]byte) [][]byte {
		var all [][]byte
		for _, p := range packets {
			all = append(all, append(make([]byte, offset), p...))
		}
		return all
	}
	answer, other, forbidden := udpPacket(4, 53535), tcpPacket(6, 51234, ack), tcpPacket(4, 22, syn)

	n, err := f.Write(batch(answer, forbidden), offset)
	assert.NoError(t, err)
	assert.Equal(t, 2, n, "what is dropped counts as written: it is not to be sent again")
	assert.Empty(t, kernel.received)

	bufs, sizes := [][]byte{make([]byte, 1500)}, make([]int, 1)
	_, err = f.Read(bufs, sizes, offset)
	assert.NoError(t, err)
	_, err = f.Write(batch(forbidden, answer, forbidden, other), offset)
	assert.NoError(t, err)
	assert.Equal(t, [][]byte{answer, other}, kernel.received)
}

// kernelSide stands for the kernel's side of a TUN: it keeps the packets that are written.
type kernelSide struct {
	tun.Device
	sends    []byte
	received [][]byte
}

func (w *kernelSide) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	sizes[0] = copy(bufs[0][offset:], w.sends)
	return 1, nil
}

func (w *kernelSide) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		w.received = append(w.received, b[offset:])
	}
	return len(bufs), nil
}

// FuzzFirewall compares the firewall with gVisor's parser, which sees in a packet what a kernel
// would see.
func FuzzFirewall(f *testing.F) {
	for _, p := range [][]byte{
		tcpPacket(4, openPort, syn), tcpPacket(6, 22, syn), withIPv4Options(tcpPacket(4, 22, syn)),
		udpPacket(4, sentFrom), udpPacket(6, neverSent),
		fragment(tcpPacket(4, 22, syn), ipv4Fragment), withExtension(tcpPacket(6, 22, syn), 0), icmpPacket(4), nil,
	} {
		f.Add(p)
	}
	filter := newFilter(openPort)
	f.Fuzz(func(t *testing.T, b []byte) {
		_, transport := packet.Transport(b)
		assert.LessOrEqual(t, len(transport), len(b))
		if !filter.admits(b, now) {
			return
		}
		var network header.Network
		switch header.IPVersion(b) {
		case header.IPv4Version:
			ip := header.IPv4(b)
			if ip.FragmentOffset() != 0 {
				assert.Equal(t, header.UDPProtocolNumber, ip.TransportProtocol())
				return
			}
			assert.LessOrEqual(t, int(ip.HeaderLength()), len(b))
			network, transport = ip, b[ip.HeaderLength():]
		case header.IPv6Version:
			network, transport = header.IPv6(b), b[header.IPv6MinimumSize:]
			if header.IPv6(b).NextHeader() == packet.ExtensionFragment {
				part := header.IPv6Fragment(transport)
				assert.Equal(t, header.UDPProtocolNumber, part.TransportProtocol())
				if part.FragmentOffset() == 0 {
					assert.Contains(t, []uint16{sentFrom, sentANewDay}, header.UDP(transport[8:]).DestinationPort())
				}
				return
			}
		default:
			t.Fatal("neither IPv4 nor IPv6")
		}
		switch network.TransportProtocol() {
		case header.TCPProtocolNumber:
			if segment := header.TCP(transport); segment.Flags()&(syn|ack) == syn {
				assert.EqualValues(t, openPort, segment.DestinationPort())
			}
		case header.UDPProtocolNumber:
			assert.Contains(t, []uint16{sentFrom, sentANewDay}, header.UDP(transport).DestinationPort())
		case header.ICMPv4ProtocolNumber, header.ICMPv6ProtocolNumber:
		default:
			t.Fatalf("protocol %d is let in", network.TransportProtocol())
		}
	})
}

// podPacket is an IP packet from the pod to the laptop.
func podPacket(version int, protocol uint8, payload []byte) []byte {
	if version == 6 {
		b := append(make([]byte, header.IPv6MinimumSize), payload...)
		header.IPv6(b).Encode(&header.IPv6Fields{
			PayloadLength: uint16(
				len(payload),
			), TransportProtocol: tcpip.TransportProtocolNumber(protocol), HopLimit: 64,
			SrcAddr: tcpip.AddrFrom16(pod6.As16()), DstAddr: tcpip.AddrFrom16(laptop6.As16()),
		})
		return b
	}
	b := append(make([]byte, header.IPv4MinimumSize), payload...)
	ip := header.IPv4(b)
	ip.Encode(&header.IPv4Fields{
		TotalLength: uint16(
			len(b),
		), TTL: 64, Protocol: protocol, SrcAddr: tcpip.AddrFrom4(pod4.As4()), DstAddr: tcpip.AddrFrom4(laptop4.As4()),
	})
	ip.SetChecksum(^ip.CalculateChecksum())
	return b
}

func tcpPacket(version int, to uint16, flags header.TCPFlags) []byte {
	b := make([]byte, header.TCPMinimumSize)
	header.TCP(b).
		Encode(&header.TCPFields{
			SrcPort:    8080,
			DstPort:    to,
			DataOffset: header.TCPMinimumSize,
			Flags:      flags,
			WindowSize: 65535,
		})
	return podPacket(version, packet.TCP, b)
}

func udpPacket(version int, to uint16) []byte {
	b := make([]byte, header.UDPMinimumSize)
	header.UDP(b).Encode(&header.UDPFields{SrcPort: 53, DstPort: to, Length: header.UDPMinimumSize})
	return podPacket(version, packet.UDP, b)
}

func udpPacketFrom(version int, from uint16) []byte {
	b := make([]byte, header.UDPMinimumSize)
	header.UDP(b).Encode(&header.UDPFields{SrcPort: from, DstPort: 53, Length: header.UDPMinimumSize})
	return podPacket(version, packet.UDP, b)
}

func icmpPacket(version int) []byte {
	b := make([]byte, 8)
	if version == 6 {
		b[0] = byte(header.ICMPv6EchoRequest)
		return podPacket(6, uint8(header.ICMPv6ProtocolNumber), b)
	}
	b[0] = byte(header.ICMPv4Echo)
	header.ICMPv4(b).SetChecksum(^checksum.Checksum(b, 0))
	return podPacket(4, uint8(header.ICMPv4ProtocolNumber), b)
}

// fragment sets IPv4's flags and fragment offset.
func fragment(b []byte, flagsAndOffset uint16) []byte {
	binary.BigEndian.PutUint16(b[6:], flagsAndOffset)
	return b
}

// withIPv4Options puts four bytes of no-operation between the IP header and what follows.
func withIPv4Options(b []byte) []byte {
	out := append(append([]byte{}, b[:20]...), 1, 1, 1, 1)
	out[0] = 0x46
	binary.BigEndian.PutUint16(out[2:], uint16(len(b)+4))
	return append(out, b[20:]...)
}

// firstFragment puts an IPv6 fragment header with more fragments to come in front of the transport
// header.
func firstFragment(b []byte) []byte {
	out := withExtension(b, packet.ExtensionFragment)
	out[42], out[43] = 0, 1
	return out
}

// withExtension puts an IPv6 extension header of 8 bytes in front of the transport header.
func withExtension(b []byte, kind byte) []byte {
	out := append([]byte{}, b[:40]...)
	out = append(out, b[6], 0, 1, 4, 0, 0, 0, 0)
	out[6] = kind
	binary.BigEndian.PutUint16(out[4:], uint16(len(b)-40+8))
	return append(out, b[40:]...)
}

// An answer is admitted for minutes after the question, even when the clock jumps: only the
// difference counts.
func TestUDPAnswersAreAdmittedForMinutes(t *testing.T) {
	f := &Firewall{}
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{
		{after: 0, want: true},
		{after: time.Second, want: true},
		{after: udpMemory*time.Second - time.Second, want: true},
		{after: udpMemory * time.Second, want: false},
		{after: 24 * time.Hour, want: false},
		{after: -time.Second, want: true},
	} {
		f.sentAt[sentFrom].Store(now)
		assert.Equal(
			t,
			c.want,
			f.admits(udpPacket(4, sentFrom), now+uint32(int64(c.after/time.Second))),
			"after %s",
			c.after,
		)
	}
}
