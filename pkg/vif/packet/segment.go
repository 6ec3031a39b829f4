package packet

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// A large packet is several segments of TCP in one, as the kernel and netstack make them when they need not care for the MTU (GSO). Its
// checksum is only begun: that of the pseudo-header. Between two ends that understand them they go through the tunnel as they are: less
// to do for each byte. WireGuard proves that they are whole. The kernel and netstack take such a packet as they made it.
const (
	// maxLarge is the longest large packet. It must fit WireGuard's buffers, and as pieces what the kernel cuts at once. kernelLarge is
	// what the kernel has to be told: it makes them shorter by more than the headers.
	MaxLarge, KernelLarge = 64300, 64512
	// tcpChecksum is where the checksum is in a TCP header.
	TCPChecksum = 16
)

// segments cuts a large packet into packets of the size that the VIF's MTU allows, with their checksums.
type Segmenter struct {
	packet            []byte
	IPHeader, Headers int // the length of the IP header, and with that of TCP's
	mss               int
	done              int // bytes of the contents
	count             int
}

// cutLarge prepares a packet; ok is false when it is none that can be cut.
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

// next writes the next segment to a buffer and returns its length, 0 when there was none left.
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

// setLength makes an IP header fit its packet, the count-th of several.
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

// finishChecksum completes a checksum that has only been begun; it is at a place of what begins at start. It says whether there is such a place.
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
