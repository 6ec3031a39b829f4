package rootless

import (
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/netstack"
	"github.com/detour-dev/detour/pkg/vif/packet"
	"github.com/detour-dev/detour/pkg/vif/tundev"
)

// HostLoopback stands for the host's 127.0.0.1 inside a Namespace whose TUN was opened with it. It
// is the last address but one of the range of laptop addresses (RFC 2544), so no real host has it.
var HostLoopback = netip.MustParseAddr("198.18.255.254")

// egressOffset leaves room before a packet for the kernel's offload header, which the TUN's driver
// writes there.
const egressOffset = 16

// egressTUN is the TUN of a Namespace, whose default route leads to it. WireGuard reads only the
// packets for the cluster's networks. All others end in a network stack of the daemon's, which
// carries their flows on with the host's ordinary sockets. That is how a process in a namespace
// without a network of its own reaches the Internet.
type egressTUN struct {
	tun.Device
	mtu         int
	log         *slog.Logger
	clusterNets atomic.Pointer[[]netip.Prefix]
	outside     *netstack.Stack
	done        sync.WaitGroup
	close       func() error
}

func newEgressTUN(device tun.Device, mtu int, hostLoopback bool, log *slog.Logger) (*egressTUN, error) {
	c := netstack.Config{MTU: mtu, Allow: allowEgress, Log: log}
	if hostLoopback {
		c.Translate = func(to netip.AddrPort) netip.AddrPort {
			if to.Addr() == HostLoopback {
				return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port())
			}
			return to
		}
	} else {
		// No host has this address. Without --host-loopback it is refused at once, and not after a
		// time-out.
		c.Allow = func(a netip.Addr) bool { return a != HostLoopback && allowEgress(a) }
	}
	outside, err := netstack.New(c)
	if err != nil {
		return nil, fmt.Errorf("make the network stack for destinations outside the cluster: %w", err)
	}
	s := &egressTUN{Device: device, mtu: mtu, log: log, outside: outside}
	s.clusterNets.Store(&[]netip.Prefix{})
	s.close = sync.OnceValue(s.end)
	s.done.Go(s.writeBack)
	return s, nil
}

// allowEgress keeps processes inside away from services that are bound to the host's loopback,
// because those trust every local client. A dial of an unspecified address would end on loopback
// too.
func allowEgress(a netip.Addr) bool {
	a = a.Unmap()
	if a.Is4() && (a.As4()[0] == 0 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})) {
		return false
	}
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast()
}

// Read returns packets for the cluster. It gives packets for other destinations to the network
// stack.
func (s *egressTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, err := s.Device.Read(bufs, sizes, offset)
		count := 0
		for i := range n {
			pkt := bufs[i][offset : offset+sizes[i]]
			switch s.route(pkt) {
			case routeCluster:
				if i != count {
					// The packet is copied, not swapped: WireGuard knows its buffers by their
					// index.
					copy(bufs[count][offset:], pkt)
					sizes[count] = sizes[i]
				}
				count++
			case routeEgress:
				if _, werr := s.outside.Write([][]byte{pkt}, 0); werr != nil {
					s.log.Debug("forwarding a packet failed", "err", werr)
				}
			}
		}
		if count > 0 || err != nil {
			return count, err
		}
	}
}

const (
	routeNowhere = iota
	routeCluster
	routeEgress
)

// route decides where a packet goes. Egress passes only TCP, UDP and pings.
func (s *egressTUN) route(pkt []byte) int {
	if len(pkt) < 20 {
		return routeNowhere
	}
	var to netip.Addr
	switch {
	case pkt[0]>>4 == 4:
		to = netip.AddrFrom4([4]byte(pkt[16:20]))
	case pkt[0]>>4 == 6 && len(pkt) >= 40:
		to = netip.AddrFrom16([16]byte(pkt[24:40]))
	default:
		return routeNowhere
	}
	if slices.ContainsFunc(*s.clusterNets.Load(), func(p netip.Prefix) bool { return p.Contains(to) }) {
		return routeCluster
	}
	if to.IsMulticast() {
		return routeNowhere
	}
	switch protocol, transport := packet.Transport(pkt); protocol {
	case packet.TCP, packet.UDP, packet.LaterUDPFragment:
		return routeEgress
	case packet.ICMP, packet.ICMPv6:
		if len(transport) > 0 && packet.IsEchoRequest(to, transport[0]) {
			return routeEgress
		}
	}
	return routeNowhere
}

// writeBack carries the network stack's packets to the processes inside.
func (s *egressTUN) writeBack() {
	whole := make([][]byte, s.outside.BatchSize())
	for i := range whole {
		whole[i] = make([]byte, egressOffset+s.mtu)
	}
	bufs, sizes := make([][]byte, len(whole)), make([]int, len(whole))
	for {
		n, err := s.outside.Read(whole, sizes, egressOffset)
		if err != nil {
			return
		}
		for i := range n {
			bufs[i] = whole[i][:egressOffset+sizes[i]]
		}
		if _, err := s.Write(bufs[:n], egressOffset); err != nil {
			s.log.Debug("writing answers to the interface failed", "err", err)
		}
	}
}

func (s *egressTUN) SetLarge(large bool) {
	if o, ok := s.Device.(tundev.LargePackets); ok {
		o.SetLarge(large)
	}
}

func (s *egressTUN) setClusterNets(routes []netip.Prefix) { s.clusterNets.Store(&routes) }

// MTU does not ask the device, which would ask the kernel in the wrong network namespace.
func (s *egressTUN) MTU() (int, error) { return s.mtu, nil }

// Close ends the forwarded flows too, and waits for them.
func (s *egressTUN) Close() error { return s.close() }

func (s *egressTUN) end() error {
	s.outside.Stop()
	_ = s.outside.Close()
	err := s.Device.Close()
	s.done.Wait()
	s.outside.Wait()
	return err
}
