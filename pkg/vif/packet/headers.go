package packet

import (
	"encoding/binary"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// BatchSize is the number of packets that are handed on at once. WireGuard has a buffer of 64 KiB
// for each packet in each direction; more of them than the processor's cache holds make nothing
// faster.
const BatchSize = 32

// Protocols as Transport returns them.
const (
	ICMP   = 1
	TCP    = 6
	UDP    = 17
	ICMPv6 = 58
	// LaterUDPFragment stands for a fragment of a datagram that is not its first one. A UDP header
	// is always whole in the first fragment, so a later one cannot change where the datagram goes,
	// and without an accepted first one nothing comes of it.
	LaterUDPFragment = 256
	// ExtensionFragment is IPv6's extension header for fragments.
	ExtensionFragment = 44
)

// The flags of TCP that matter here (RFC 9293, 3.1).
const FlagFIN, FlagSYN, FlagRST, FlagPSH, FlagACK = 0x01, 0x02, 0x04, 0x08, 0x10

// Transport finds the transport header of an IP packet. Protocol 0 means that the packet is of no
// use: too short, or a fragment without a transport header that does not belong to a datagram (the
// VIF's large MTU makes those needless). IPv6 extension headers count as protocols of their own,
// which nothing behind the VIF speaks, except the fragments of a datagram.
func Transport(packet []byte) (protocol int, transport []byte) {
	if len(packet) < 20 {
		return 0, nil
	}
	switch packet[0] >> 4 {
	case 4:
		length := int(packet[0]&0x0f) * 4
		if length < 20 || len(packet) < length {
			return 0, nil
		}
		if binary.BigEndian.Uint16(packet[6:])&0x1fff == 0 {
			return int(packet[9]), packet[length:]
		}
		if packet[9] == UDP {
			return LaterUDPFragment, nil
		}
	case 6:
		if len(packet) < 40 {
			return 0, nil
		}
		if packet[6] == ExtensionFragment && len(packet) >= 48 && packet[40] == UDP {
			if binary.BigEndian.Uint16(packet[42:])&^7 == 0 {
				return UDP, packet[48:]
			}
			return LaterUDPFragment, nil
		}
		return int(packet[6]), packet[40:]
	}
	return 0, nil
}

// Ends returns the source and destination of a TCP or UDP packet that Transport has accepted.
func Ends(packet, transport []byte) (source, destination netip.AddrPort) {
	from, to := binary.BigEndian.Uint16(transport), binary.BigEndian.Uint16(transport[2:])
	if packet[0]>>4 == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[12:16])), from),
			netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[16:20])), to)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(packet[8:24])), from),
		netip.AddrPortFrom(netip.AddrFrom16([16]byte(packet[24:40])), to)
}

// IsEchoRequest reports whether an ICMP message of this type, to this address, is an echo request.
func IsEchoRequest(to netip.Addr, kind byte) bool {
	return to.Is4() && kind == byte(header.ICMPv4Echo) || to.Is6() && kind == byte(header.ICMPv6EchoRequest)
}
