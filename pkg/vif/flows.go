package vif

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// The flags of TCP that matter here (RFC 9293, 3.1).
const (
	flagFIN, flagSYN, flagRST, flagPSH, flagACK = 0x01, 0x02, 0x04, 0x08, 0x10
	// maxFlows bounds the memory of open connections; beyond it some are forgotten.
	maxFlows = 1 << 16
	// tunOffset leaves room for the header that a TUN's driver writes before a packet.
	tunOffset = 16
)

// tcpFlowID is a TCP connection as the laptop sees it.
type tcpFlowID struct{ local, remote netip.AddrPort }

// flowMemory knows which TCP connections through the VIF are open, from their first and last packets.
type flowMemory struct {
	mu   sync.Mutex
	open map[tcpFlowID]byte // which sides have ended: 1 the laptop, 2 the other
}

// note learns from a packet; sent says that it is the laptop's.
func (m *flowMemory) note(packet, transport []byte, sent bool) {
	flags := transport[13]
	if flags&(flagSYN|flagFIN|flagRST) == 0 {
		return
	}
	source, destination := ends4or6(packet, transport)
	id := tcpFlowID{local: source, remote: destination}
	if !sent {
		id = tcpFlowID{local: destination, remote: source}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case flags&flagRST != 0:
		delete(m.open, id)
	case flags&flagSYN != 0:
		if flags&flagACK != 0 {
			return
		}
		if m.open == nil {
			m.open = map[tcpFlowID]byte{}
		}
		if len(m.open) >= maxFlows {
			for some := range m.open {
				delete(m.open, some)
				break
			}
		}
		m.open[id] = 0
	default:
		ended, ok := m.open[id]
		if !ok {
			return
		}
		if sent {
			ended |= 1
		} else {
			ended |= 2
		}
		if m.open[id] = ended; ended == 3 {
			delete(m.open, id)
		}
	}
}

func (m *flowMemory) all() []tcpFlowID {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]tcpFlowID, 0, len(m.open))
	for id := range m.open {
		all = append(all, id)
	}
	return all
}

// ends4or6 are the addresses of a TCP packet that transportOf has accepted.
func ends4or6(packet, transport []byte) (source, destination netip.AddrPort) {
	from, to := binary.BigEndian.Uint16(transport), binary.BigEndian.Uint16(transport[2:])
	if packet[0]>>4 == 4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[12:16])), from), netip.AddrPortFrom(netip.AddrFrom4([4]byte(packet[16:20])), to)
	}
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(packet[8:24])), from), netip.AddrPortFrom(netip.AddrFrom16([16]byte(packet[24:40])), to)
}

// resetFlows ends the connections that a hub which is no more had accepted. The laptop's kernel gets a packet on each that cannot
// belong there, and answers with where the connection stands (RFC 5961); the hub that is there now does not know the connection
// and resets it.
func (f *filteredTUN) resetFlows() error {
	for _, id := range f.flows.all() {
		packet := strayACK(id.remote, id.local)
		if _, err := f.Device.Write([][]byte{append(make([]byte, tunOffset), packet...)}, tunOffset); err != nil {
			return fmt.Errorf("write to the network interface: %w", err)
		}
	}
	return nil
}

// strayACK is an acknowledgement with a sequence number that no connection expects.
func strayACK(from, to netip.AddrPort) []byte {
	source, destination := tcpip.AddrFromSlice(from.Addr().AsSlice()), tcpip.AddrFromSlice(to.Addr().AsSlice())
	size := header.IPv4MinimumSize
	if from.Addr().Is6() {
		size = header.IPv6MinimumSize
	}
	packet := make([]byte, size+header.TCPMinimumSize)
	if from.Addr().Is6() {
		header.IPv6(packet).Encode(&header.IPv6Fields{PayloadLength: header.TCPMinimumSize, TransportProtocol: header.TCPProtocolNumber, HopLimit: 64, SrcAddr: source, DstAddr: destination})
	} else {
		ip := header.IPv4(packet)
		ip.Encode(&header.IPv4Fields{TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: source, DstAddr: destination})
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	segment := header.TCP(packet[size:])
	segment.Encode(&header.TCPFields{SrcPort: from.Port(), DstPort: to.Port(), SeqNum: rand.Uint32(), AckNum: rand.Uint32(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagAck})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, source, destination, header.TCPMinimumSize)
	segment.SetChecksum(^segment.CalculateChecksum(checksum.Combine(sum, 0)))
	return packet
}
