package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A large packet is several TCP segments in one, as the kernel and netstack make them when they may
// ignore the MTU (GSO). Its checksum is only begun: the field holds the sum of the pseudo-header.
// Between two ends that know large packets they pass the tunnel as they are, which costs less for
// each byte; WireGuard proves that they are intact. The kernel and netstack take such a packet as
// they made it.
const (
	// MaxLarge is the length of the longest large packet. Such a packet must fit WireGuard's
	// buffers and, in fragments, one GSO send. KernelLarge is the limit to give the kernel, which
	// makes packets shorter than its limit by more than the headers.
	MaxLarge, KernelLarge = 64300, 64512
	// TCPChecksum is the place of the checksum in a TCP header.
	TCPChecksum = 16
)

// Segmenter cuts a large packet into packets that fit the VIF's MTU, and completes their checksums.
type Segmenter struct {
	packet            []byte
	IPHeader, Headers int // the length of the IP header, and of the IP and TCP headers
	mss               int
	done              int // bytes of the contents that were written
	count             int
}

// NewSegmenter prepares a packet, which must not change until the last Next. ok is false when the
// packet cannot be cut.
func NewSegmenter(packet []byte, mss int) (s Segmenter, ok bool) {
	protocol, transport := Transport(packet)
	if protocol != TCP || len(transport) < header.TCPMinimumSize || mss < 1 {
		return s, false
	}
	s = Segmenter{packet: packet, IPHeader: len(packet) - len(transport), mss: mss}
	s.Headers = s.IPHeader + int(transport[12]>>4)*4
	return s, s.Headers >= s.IPHeader+header.TCPMinimumSize && s.Headers < len(packet)
}

// Active reports whether there are segments to come. The zero value has none.
func (s *Segmenter) Active() bool { return s.packet != nil }

// Next writes the next segment to a buffer and returns its length, 0 when there are no more.
func (s *Segmenter) Next(to []byte) int {
	contents := s.packet[s.Headers+s.done:]
	if len(contents) == 0 {
		return 0
	}
	n := min(len(contents), s.mss)
	packet := to[:s.Headers+n]
	copy(packet, s.packet[:s.Headers])
	copy(packet[s.Headers:], contents[:n])
	SetLength(packet, s.IPHeader, s.count)
	tcp := header.TCP(packet[s.IPHeader:])
	tcp.SetSequenceNumber(tcp.SequenceNumber() + uint32(s.done))
	if n < len(contents) {
		tcp[13] &^= FlagFIN | FlagPSH
	}
	beginChecksum(packet, s.IPHeader)
	FinishChecksum(packet, s.IPHeader, TCPChecksum)
	s.done += n
	s.count++
	return len(packet)
}

// SetLength makes an IP header fit its packet, which is the count-th segment of a large one.
func SetLength(packet []byte, ip, count int) {
	if packet[0]>>4 == 6 {
		binary.BigEndian.PutUint16(packet[4:], uint16(len(packet)-ip))
		return
	}
	h := header.IPv4(packet)
	h.SetTotalLength(uint16(len(packet)))
	h.SetID(h.ID() + uint16(count))
	h.SetChecksum(0)
	h.SetChecksum(^h.CalculateChecksum())
}

// beginChecksum puts the sum of the pseudo-header where TCP's checksum will be.
func beginChecksum(packet []byte, ip int) {
	var from, to tcpip.Address
	if packet[0]>>4 == 6 {
		from, to = header.IPv6(packet).SourceAddress(), header.IPv6(packet).DestinationAddress()
	} else {
		from, to = header.IPv4(packet).SourceAddress(), header.IPv4(packet).DestinationAddress()
	}
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, from, to, uint16(len(packet)-ip))
	binary.BigEndian.PutUint16(packet[ip+TCPChecksum:], sum)
}

// FinishChecksum completes a checksum that is only begun. The checksum covers the bytes from start,
// and is at place in them. FinishChecksum reports whether the packet has such a place.
func FinishChecksum(packet []byte, start, place int) bool {
	if start+place+2 > len(packet) {
		return false
	}
	field := packet[start+place:]
	begun := binary.BigEndian.Uint16(field)
	field[0], field[1] = 0, 0
	binary.BigEndian.PutUint16(field, ^checksum.Checksum(packet[start:], begun))
	return true
}
