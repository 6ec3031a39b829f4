package tundev

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

const (
	// maxFlows bounds the table. When it is full, a new flow takes the place of an arbitrary one.
	maxFlows = 1 << 16
	// tunOffset leaves room for the header that a TUN's driver writes before a packet.
	tunOffset = 16
)

// FlowID is a TCP connection as the laptop sees it.
type FlowID struct{ Local, Remote netip.AddrPort }

// flowTable knows which TCP connections through the VIF are open, from their first and last
// packets.
type flowTable struct {
	// mu guards the fields below.
	mu   sync.Mutex
	open map[FlowID]byte // the sides that have ended, as bits: 1 is the laptop, 2 the other side
}

// note learns from a packet; sent says that the laptop sent it.
func (m *flowTable) note(pkt, transport []byte, sent bool) {
	flags := transport[13]
	if flags&(packet.FlagSYN|packet.FlagFIN|packet.FlagRST) == 0 {
		return
	}
	source, destination := packet.Ends(pkt, transport)
	id := FlowID{Local: source, Remote: destination}
	if !sent {
		id = FlowID{Local: destination, Remote: source}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case flags&packet.FlagRST != 0:
		delete(m.open, id)
	case flags&packet.FlagSYN != 0:
		if flags&packet.FlagACK != 0 {
			return
		}
		if m.open == nil {
			m.open = map[FlowID]byte{}
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

func (m *flowTable) all() []FlowID {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := make([]FlowID, 0, len(m.open))
	for id := range m.open {
		all = append(all, id)
	}
	return all
}

// ResetFlows ends the connections that a former hub had accepted. On each the laptop's kernel gets
// a packet that cannot belong there, and answers with the connection's state (RFC 5961). The new
// hub does not know the connection and resets it.
func (f *Firewall) ResetFlows() error {
	for _, id := range f.flows.all() {
		pkt := strayACK(id.Remote, id.Local)
		if _, err := f.Device.Write([][]byte{append(make([]byte, tunOffset), pkt...)}, tunOffset); err != nil {
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
	pkt := make([]byte, size+header.TCPMinimumSize)
	if from.Addr().Is6() {
		header.IPv6(pkt).Encode(&header.IPv6Fields{
			PayloadLength:     header.TCPMinimumSize,
			TransportProtocol: header.TCPProtocolNumber,
			HopLimit:          64,
			SrcAddr:           source,
			DstAddr:           destination,
		})
	} else {
		ip := header.IPv4(pkt)
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(len(pkt)),
			TTL:         64,
			Protocol:    uint8(header.TCPProtocolNumber),
			SrcAddr:     source,
			DstAddr:     destination,
		})
		ip.SetChecksum(^ip.CalculateChecksum())
	}
	segment := header.TCP(pkt[size:])
	segment.Encode(&header.TCPFields{
		SrcPort:    from.Port(),
		DstPort:    to.Port(),
		SeqNum:     rand.Uint32(),
		AckNum:     rand.Uint32(),
		DataOffset: header.TCPMinimumSize,
		Flags:      header.TCPFlagAck,
	})
	sum := header.PseudoHeaderChecksum(header.TCPProtocolNumber, source, destination, header.TCPMinimumSize)
	segment.SetChecksum(^segment.CalculateChecksum(checksum.Combine(sum, 0)))
	return pkt
}
