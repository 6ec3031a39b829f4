package remap

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	laptop4, laptop6 = netip.MustParseAddr("198.18.0.2"), netip.MustParseAddr("fd64::2")
	real4, seen4     = netip.MustParseAddr("10.96.7.9"), netip.MustParseAddr("198.19.7.9")
	real6, seen6     = netip.MustParseAddr("fd96::1:0:5"), netip.MustParseAddr("fd77::1:0:5")
	elsewhere        = netip.MustParseAddr("10.244.0.7")
	table            = Table{pair("10.96.0.0/16=198.19.0.0/16"), pair("fd96::/64=fd77::/64")}
)

func pair(text string) Pair {
	real, seen, _ := bytes.Cut([]byte(text), []byte("="))
	return Pair{Real: netip.MustParsePrefix(string(real)), Seen: netip.MustParsePrefix(string(seen))}
}

func TestAddresses(t *testing.T) {
	for _, c := range []struct{ pair, real, seen string }{
		{pair: "10.96.0.0/16=198.19.0.0/16", real: "10.96.0.1", seen: "198.19.0.1"},
		{pair: "10.96.0.0/16=198.19.0.0/16", real: "10.96.255.255", seen: "198.19.255.255"},
		{pair: "10.96.16.0/20=172.16.32.0/20", real: "10.96.31.7", seen: "172.16.47.7"},
		{pair: "10.96.16.0/20=172.16.32.0/20", real: "10.96.15.7", seen: "10.96.15.7"},
		{pair: "10.1.1.1/32=10.2.2.2/32", real: "10.1.1.1", seen: "10.2.2.2"},
		{pair: "0.0.0.0/1=128.0.0.0/1", real: "10.1.1.1", seen: "138.1.1.1"},
		{pair: "fd96::/112=fd00:1::/112", real: "fd96::abcd", seen: "fd00:1::abcd"},
		{pair: "fd96::/112=fd00:1::/112", real: "10.1.1.1", seen: "10.1.1.1"},
	} {
		table := Table{pair(c.pair)}
		real, seen := netip.MustParseAddr(c.real), netip.MustParseAddr(c.seen)
		assert.Equal(t, seen, table.Seen(real), c.pair)
		assert.Equal(t, real, table.Real(seen), c.pair)
	}
	assert.Equal(t, elsewhere, Table(nil).Seen(elsewhere))
}

func TestCheck(t *testing.T) {
	require.NoError(t, table.Check())
	for text, want := range map[string]string{
		"10.0.0.0/8=198.19.0.0/16":   "differ in size or IP family",
		"10.96.0.1/16=198.19.0.0/16": "bits set after its length",
		"10.96.0.0/16=10.96.0.0/16":  "overlap",
	} {
		require.ErrorContains(t, Table{pair(text)}.Check(), want, text)
	}
	require.ErrorContains(
		t,
		Table{{Real: netip.MustParsePrefix("10.0.0.0/8"), Seen: netip.MustParsePrefix("fd00::/8")}}.Check(),
		"differ in size or IP family",
	)
	for _, two := range []Table{
		{pair("10.96.0.0/16=198.19.0.0/16"), pair("10.96.1.0/24=198.20.0.0/24")},
		{pair("10.96.0.0/16=198.19.0.0/16"), pair("10.97.1.0/24=198.19.0.0/24")},
		{pair("10.96.0.0/16=198.19.0.0/16"), pair("198.19.0.0/16=10.20.0.0/16")},
	} {
		require.ErrorContains(t, two.Check(), "overlap")
	}
}

// A packet that the laptop sends arrives in the cluster intact, and the answer comes from the
// address that the laptop knows.
func TestPackets(t *testing.T) {
	for name, protocol := range map[string]tcpip.TransportProtocolNumber{
		"TCP":        tcp,
		"UDP":        udp,
		"echo":       icmp4,
		"echo, IPv6": icmp6,
	} {
		for _, ends := range []struct{ laptop, real, seen netip.Addr }{
			{laptop: laptop4, real: real4, seen: seen4},
			{laptop: laptop6, real: real6, seen: seen6},
			{laptop: laptop4, real: elsewhere, seen: elsewhere},
		} {
			if protocol == icmp4 && ends.laptop.Is6() || protocol == icmp6 && ends.laptop.Is4() {
				continue
			}
			for payload := range 4 { // odd lengths too
				p := packet(ends.laptop, ends.seen, protocol, bytes.Repeat([]byte{0xab}, payload))
				table.Out(p)
				require.Equal(t, packet(ends.laptop, ends.real, protocol, bytes.Repeat([]byte{0xab}, payload)), p, name)
				p = packet(ends.real, ends.laptop, protocol, bytes.Repeat([]byte{0xcd}, payload))
				table.In(p)
				require.Equal(t, packet(ends.seen, ends.laptop, protocol, bytes.Repeat([]byte{0xcd}, payload)), p, name)
			}
		}
	}
}

// A program gets an ICMP error only when the packet in it is one that the program sent.
func TestErrors(t *testing.T) {
	for _, ends := range []struct {
		laptop, real, seen netip.Addr
		icmp               tcpip.TransportProtocolNumber
		kind               byte
	}{
		{laptop: laptop4, real: real4, seen: seen4, icmp: icmp4, kind: 3},
		{laptop: laptop6, real: real6, seen: seen6, icmp: icmp6, kind: 1},
	} {
		for _, protocol := range []tcpip.TransportProtocolNumber{tcp, udp} {
			failure := func(from, to netip.Addr, about []byte) []byte {
				body := append([]byte{ends.kind, 1, 0, 0, 0, 0, 0, 0}, about...)
				return wrap(from, to, ends.icmp, body)
			}
			inner := packet(ends.laptop, ends.real, protocol, []byte("what was sent"))
			sent := packet(ends.laptop, ends.seen, protocol, []byte("what was sent"))
			for _, from := range []struct{ real, seen netip.Addr }{
				{real: ends.real, seen: ends.seen},
				{real: router(ends.laptop), seen: router(ends.laptop)},
			} {
				p := failure(from.real, ends.laptop, inner)
				table.In(p)
				require.Equal(t, failure(from.seen, ends.laptop, sent), p, "from %s", from.real)
			}
			// In the other direction the laptop refuses a datagram.
			datagram := packet(ends.seen, ends.laptop, protocol, []byte("x"))
			p := failure(ends.laptop, ends.seen, datagram)
			table.Out(p)
			require.Equal(t, failure(ends.laptop, ends.real, packet(ends.real, ends.laptop, protocol, []byte("x"))), p)
		}
	}
}

func router(laptop netip.Addr) netip.Addr {
	if laptop.Is4() {
		return netip.MustParseAddr("172.30.0.11")
	}
	return netip.MustParseAddr("fd30::11")
}

func TestMissingUDPChecksumStaysMissing(t *testing.T) {
	p := packet(laptop4, seen4, udp, []byte("x"))
	p[26], p[27] = 0, 0
	table.Out(p)
	require.Zero(t, int(p[26])|int(p[27]))
	assert.Equal(t, real4, netip.AddrFrom4([4]byte(p[16:20])))
}

func TestLaterFragmentsHaveNoChecksum(t *testing.T) {
	p := packet(laptop4, seen4, tcp, []byte("a part of a segment"))
	p[6], p[7] = 0, 185
	h := header.IPv4(p)
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
	before := bytes.Clone(p[20:])
	table.Out(p)
	require.Equal(t, before, p[20:])
	require.True(t, h.IsChecksumValid())
}

// FuzzPackets gives made-up bytes to both directions. Only addresses and checksums may change, and
// bytes that are not a packet must stay as they are.
func FuzzPackets(f *testing.F) {
	for _, p := range []tcpip.TransportProtocolNumber{tcp, udp, icmp4} {
		f.Add(packet(laptop4, seen4, p, []byte("payload")))
		f.Add(wrap(real4, laptop4, icmp4, append([]byte{3, 1, 0, 0, 0, 0, 0, 0}, packet(laptop4, real4, p, nil)...)))
	}
	f.Add(packet(laptop6, seen6, tcp, nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		for _, change := range []func([]byte){table.Out, table.In} {
			before, now := bytes.Clone(p), bytes.Clone(p)
			change(now)
			if h := parse(before); h.version == 0 {
				require.Equal(t, before, now)
			} else {
				require.Equal(t, before[:4], now[:4], "version, length")
			}
			other := bytes.Clone(p)
			rewrite(other, true, func(a netip.Addr) netip.Addr { return a })
			require.Equal(t, before, other, "an address that does not change")
		}
	})
}

// packet is a whole IP packet with correct checksums.
func packet(from, to netip.Addr, protocol tcpip.TransportProtocolNumber, payload []byte) []byte {
	var transport []byte
	switch protocol {
	case tcp:
		transport = append(make([]byte, header.TCPMinimumSize), payload...)
		header.TCP(transport).
			Encode(&header.TCPFields{
				SrcPort:    80,
				DstPort:    8080,
				DataOffset: header.TCPMinimumSize,
				Flags:      header.TCPFlagAck,
				WindowSize: 100,
			})
	case udp:
		transport = append(make([]byte, header.UDPMinimumSize), payload...)
		header.UDP(transport).Encode(&header.UDPFields{SrcPort: 53, DstPort: 5353, Length: uint16(len(transport))})
	case icmp4:
		transport = append([]byte{8, 0, 0, 0, 0, 1, 0, 2}, payload...)
	case icmp6:
		transport = append([]byte{128, 0, 0, 0, 0, 1, 0, 2}, payload...)
	}
	return wrap(from, to, protocol, transport)
}

// wrap puts an IP header before a transport header, and the transport's checksum into it.
func wrap(from, to netip.Addr, protocol tcpip.TransportProtocolNumber, transport []byte) []byte {
	source, destination := tcpip.AddrFromSlice(from.AsSlice()), tcpip.AddrFromSlice(to.AsSlice())
	pseudo := header.PseudoHeaderChecksum(protocol, source, destination, uint16(len(transport)))
	place := map[tcpip.TransportProtocolNumber]int{tcp: 16, udp: 6, icmp4: 2, icmp6: 2}[protocol]
	if protocol == icmp4 {
		pseudo = 0
	}
	sum := ^checksum.Checksum(transport, pseudo)
	transport[place], transport[place+1] = byte(sum>>8), byte(sum)
	if from.Is6() {
		b := append(make([]byte, header.IPv6MinimumSize), transport...)
		header.IPv6(b).
			Encode(&header.IPv6Fields{
				PayloadLength:     uint16(len(transport)),
				TransportProtocol: protocol,
				HopLimit:          64,
				SrcAddr:           source,
				DstAddr:           destination,
			})
		return b
	}
	b := append(make([]byte, header.IPv4MinimumSize), transport...)
	ip := header.IPv4(b)
	ip.Encode(
		&header.IPv4Fields{
			TotalLength: uint16(len(b)),
			TTL:         64,
			Protocol:    uint8(protocol),
			SrcAddr:     source,
			DstAddr:     destination,
		},
	)
	ip.SetChecksum(^ip.CalculateChecksum())
	return b
}
