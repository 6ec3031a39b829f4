package vif

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"
)

// HostLoopback is what stands for the host's 127.0.0.1 inside a Namespace that was made with it. It is the last address but one of the
// range that laptops get theirs from (RFC 2544), so nothing real has it.
var HostLoopback = netip.MustParseAddr("198.18.255.254")

// splitOffset leaves room before a packet for the kernel's offload header, which the TUN's driver writes there.
const splitOffset = 16

// splitTUN is the TUN of a Namespace, whose default route leads to it. WireGuard reads only the packets for the cluster's networks.
// All others end in a netstack of the laptop's, whose flows the daemon carries on with the host's ordinary sockets: that is how a
// process in a namespace without a network of its own reaches the Internet.
type splitTUN struct {
	tun.Device
	mtu     int
	log     *slog.Logger
	cluster atomic.Pointer[[]netip.Prefix]
	outside *netstackTUN
	forward *forwarder
	cancel  context.CancelFunc
	done    sync.WaitGroup
	close   func() error
}

func newSplitTUN(device tun.Device, mtu int, hostLoopback bool, log *slog.Logger) (*splitTUN, error) {
	outside, err := newNetstack(nil, mtu, nil)
	if err != nil {
		return nil, fmt.Errorf("make the way to what is not the cluster's: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &splitTUN{Device: device, mtu: mtu, log: log, outside: outside, cancel: cancel, forward: &forwarder{ctx: ctx, allow: allowOutside}}
	if hostLoopback {
		s.forward.target = func(to netip.AddrPort) netip.AddrPort {
			if to.Addr() == HostLoopback {
				return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), to.Port())
			}
			return to
		}
	} else {
		// Nobody has this address: without --host-loopback it is refused at once, not after a time-out.
		s.forward.allow = func(a netip.Addr) bool { return a != HostLoopback && allowOutside(a) }
	}
	s.cluster.Store(&[]netip.Prefix{})
	s.close = sync.OnceValue(s.end)
	s.forward.attach(outside.stack)
	attachPinger(outside.stack, s.forward, nil, log)
	s.done.Go(s.answer)
	return s, nil
}

// allowOutside keeps processes inside away from services that are bound to the host's loopback because they trust it. A dial of an
// unspecified address would end on loopback too.
func allowOutside(a netip.Addr) bool {
	a = a.Unmap()
	if a.Is4() && (a.As4()[0] == 0 || a == netip.AddrFrom4([4]byte{255, 255, 255, 255})) {
		return false
	}
	return a.IsValid() && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast()
}

// Read returns packets for the cluster; what else comes goes to netstack on the way.
func (s *splitTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		n, err := s.Device.Read(bufs, sizes, offset)
		kept := 0
		for i := range n {
			packet := bufs[i][offset : offset+sizes[i]]
			switch s.way(packet) {
			case wayCluster:
				if i != kept {
					// Copied and not swapped: WireGuard knows its buffers by their place.
					copy(bufs[kept][offset:], packet)
					sizes[kept] = sizes[i]
				}
				kept++
			case wayOutside:
				if _, werr := s.outside.Write([][]byte{packet}, 0); werr != nil {
					s.log.Debug("a packet was lost on the way out", "err", werr)
				}
			}
		}
		if kept > 0 || err != nil {
			return kept, err
		}
	}
}

const (
	wayNowhere = iota
	wayCluster
	wayOutside
)

// way says where a packet goes. Outside there are only TCP, UDP and pings.
func (s *splitTUN) way(packet []byte) int {
	if len(packet) < 20 {
		return wayNowhere
	}
	var to netip.Addr
	switch {
	case packet[0]>>4 == 4:
		to = netip.AddrFrom4([4]byte(packet[16:20]))
	case packet[0]>>4 == 6 && len(packet) >= 40:
		to = netip.AddrFrom16([16]byte(packet[24:40]))
	default:
		return wayNowhere
	}
	if slices.ContainsFunc(*s.cluster.Load(), func(p netip.Prefix) bool { return p.Contains(to) }) {
		return wayCluster
	}
	if to.IsMulticast() {
		return wayNowhere
	}
	switch protocol, transport := transportOf(packet); protocol {
	case protocolTCP, protocolUDP, laterUDP:
		return wayOutside
	case protocolICMP, protocolICMPv6:
		if len(transport) > 0 && isEcho(to, transport[0]) {
			return wayOutside
		}
	}
	return wayNowhere
}

// answer carries what netstack sends back to the processes inside.
func (s *splitTUN) answer() {
	whole := make([][]byte, s.outside.BatchSize())
	for i := range whole {
		whole[i] = make([]byte, splitOffset+s.mtu)
	}
	bufs, sizes := make([][]byte, len(whole)), make([]int, len(whole))
	for {
		n, err := s.outside.Read(whole, sizes, splitOffset)
		if err != nil {
			return
		}
		for i := range n {
			bufs[i] = whole[i][:splitOffset+sizes[i]]
		}
		if _, err := s.Write(bufs[:n], splitOffset); err != nil {
			s.log.Debug("answers from outside were lost", "err", err)
		}
	}
}

func (s *splitTUN) setLarge(large bool) {
	if o, ok := s.Device.(interface{ setLarge(bool) }); ok {
		o.setLarge(large)
	}
}

func (s *splitTUN) setCluster(routes []netip.Prefix) { s.cluster.Store(&routes) }

// MTU is known here; the device would ask the kernel, in the wrong network namespace.
func (s *splitTUN) MTU() (int, error) { return s.mtu, nil }

// Close ends the flows outside too, and waits for them.
func (s *splitTUN) Close() error { return s.close() }

func (s *splitTUN) end() error {
	s.cancel()
	s.forward.flows.reset(netip.Addr{})
	_ = s.outside.Close()
	err := s.Device.Close()
	s.done.Wait()
	s.forward.wg.Wait()
	s.outside.stack.Wait()
	return err
}
