package tundev

import (
	"encoding/binary"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// udpMemory is how long an answer to a datagram of the laptop's is let in, in seconds.
const udpMemory = 5 * 60

// Firewall keeps the cluster out of the laptop. From the tunnel it admits answers to the laptop's
// own flows, new TCP connections to one port, and ICMP. It needs no connection state for that: a
// new TCP connection is a SYN without ACK.
type Firewall struct {
	tun.Device
	port   uint16 // the open TCP port; 0 for none
	flows  flowTable
	sentAt [1 << 16]atomic.Uint32 // for each local UDP port, when the laptop last sent from it, in Unix seconds
}

// NewFirewall puts a Firewall around a TUN. port is the TCP port that the cluster may connect to, 0
// for none. Close closes the TUN too.
func NewFirewall(device tun.Device, port uint16) *Firewall {
	return &Firewall{Device: device, port: port}
}

// OpenFlows are the TCP connections that are open through the VIF.
func (f *Firewall) OpenFlows() []FlowID { return f.flows.all() }

func (f *Firewall) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := f.Device.Read(bufs, sizes, offset)
	now := uint32(time.Now().Unix())
	for i := range n {
		pkt := bufs[i][offset : offset+sizes[i]]
		switch protocol, transport := packet.Transport(pkt); {
		case protocol == packet.UDP && len(transport) >= 2:
			f.sentAt[binary.BigEndian.Uint16(transport)].Store(now)
		case protocol == packet.TCP && len(transport) >= 14:
			f.flows.note(pkt, transport, true)
		}
	}
	return n, err
}

func (f *Firewall) Write(bufs [][]byte, offset int) (int, error) {
	total := len(bufs)
	now := uint32(time.Now().Unix())
	admitted := bufs[:0:total]
	for _, b := range bufs {
		if f.admits(b[offset:], now) {
			admitted = append(admitted, b)
		}
	}
	if len(admitted) == 0 {
		return total, nil
	}
	if _, err := f.Device.Write(admitted, offset); err != nil {
		return 0, err
	}
	return total, nil
}

func (f *Firewall) admits(pkt []byte, now uint32) bool {
	protocol, transport := packet.Transport(pkt)
	switch protocol {
	case packet.TCP:
		if len(transport) < 14 {
			return false
		}
		opens := transport[13]&(packet.FlagSYN|packet.FlagACK) == packet.FlagSYN
		if opens && (f.port == 0 || binary.BigEndian.Uint16(transport[2:]) != f.port) {
			return false
		}
		f.flows.note(pkt, transport, false)
		return true
	case packet.UDP:
		if len(transport) < 4 {
			return false
		}
		sent := f.sentAt[binary.BigEndian.Uint16(transport[2:])].Load()
		// The difference is signed, because the datagram may have been sent a moment after now was
		// read.
		return sent != 0 && int32(now-sent) < udpMemory
	case packet.ICMP, packet.ICMPv6, packet.LaterUDPFragment:
		return true
	default:
		return false
	}
}
