package vif

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"
)

const (
	protocolICMP   = 1
	protocolTCP    = 6
	protocolUDP    = 17
	protocolICMPv6 = 58
	// laterUDP stands for a fragment of a datagram that is not its first one. A UDP header is always whole in the first, so this
	// one cannot change where the datagram goes, and without a first one that was let in nothing comes of it.
	laterUDP = 256
	// fragment is IPv6's extension header.
	fragmentHeader = 44
	// udpMemory is how long an answer to a datagram of the laptop's is let in.
	udpMemory = 5 * 60 // seconds
)

// filteredTUN keeps the cluster out of the laptop: from the tunnel it lets in answers to the laptop's own flows, new TCP
// connections to one port, and ICMP. It needs no connection state for that: a new TCP connection is a SYN without ACK.
type filteredTUN struct {
	tun.Device
	port   uint16 // the TCP port that is open; 0 for none
	flows  flowMemory
	sentAt [1 << 16]atomic.Uint32 // by local UDP port: when the laptop last sent from it, in Unix seconds
}

func (f *filteredTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := f.Device.Read(bufs, sizes, offset)
	now := uint32(time.Now().Unix())
	for i := range n {
		packet := bufs[i][offset : offset+sizes[i]]
		switch protocol, transport := transportOf(packet); {
		case protocol == protocolUDP && len(transport) >= 2:
			f.sentAt[binary.BigEndian.Uint16(transport)].Store(now)
		case protocol == protocolTCP && len(transport) >= 14:
			f.flows.note(packet, transport, true)
		}
	}
	return n, err
}

func (f *filteredTUN) Write(bufs [][]byte, offset int) (int, error) {
	total := len(bufs)
	now := uint32(time.Now().Unix())
	kept := bufs[:0:total]
	for _, b := range bufs {
		if f.lets(b[offset:], now) {
			kept = append(kept, b)
		}
	}
	if len(kept) == 0 {
		return total, nil
	}
	if _, err := f.Device.Write(kept, offset); err != nil {
		return 0, err
	}
	return total, nil
}

func (f *filteredTUN) lets(packet []byte, now uint32) bool {
	protocol, transport := transportOf(packet)
	switch protocol {
	case protocolTCP:
		if len(transport) < 14 {
			return false
		}
		opens := transport[13]&(flagSYN|flagACK) == flagSYN
		if opens && (f.port == 0 || binary.BigEndian.Uint16(transport[2:]) != f.port) {
			return false
		}
		f.flows.note(packet, transport, false)
		return true
	case protocolUDP:
		if len(transport) < 4 {
			return false
		}
		sent := f.sentAt[binary.BigEndian.Uint16(transport[2:])].Load()
		// Signed: the datagram may have been sent a moment after now was read.
		return sent != 0 && int32(now-sent) < udpMemory
	case protocolICMP, protocolICMPv6, laterUDP:
		return true
	default:
		return false
	}
}

// transportOf finds the transport header of an IP packet. Protocol 0 means that the packet is no use: too short, or a fragment
// without the header that is not of a datagram (the large MTU of the VIF makes those needless). IPv6 extension headers count as
// protocols of their own, which nothing behind the VIF speaks, but for a datagram's fragments.
func transportOf(packet []byte) (protocol int, transport []byte) {
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
		if packet[9] == protocolUDP {
			return laterUDP, nil
		}
	case 6:
		if len(packet) < 40 {
			return 0, nil
		}
		if packet[6] == fragmentHeader && len(packet) >= 48 && packet[40] == protocolUDP {
			if binary.BigEndian.Uint16(packet[42:])&^7 == 0 {
				return protocolUDP, packet[48:]
			}
			return laterUDP, nil
		}
		return int(packet[6]), packet[40:]
	}
	return 0, nil
}
