package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/detour-dev/detour/pkg/netx"
)

// maxPending is how many TCP connections may wait for their dial.
const maxPending = 4096

// forwarder ends the flows that come through netstack, and carries them on with ordinary sockets.
type forwarder struct {
	ctx       context.Context
	allow     func(netip.Addr) bool
	translate func(netip.AddrPort) netip.AddrPort // the address to dial instead; nil for none
	dialer    net.Dialer
	// attempts is how many dials of one destination there may be at a time; 0 is 1.
	attempts  int
	flows     flowTable
	datagrams udpFlows
	wg        sync.WaitGroup
}

func (f *forwarder) attach(s *stack.Stack) {
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, maxPending, f.tcp).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, f.udp).HandlePacket)
}

// flowEnds returns the ends of a flow: the laptop that opened it, and the destination.
func flowEnds(id stack.TransportEndpointID) (laptop netip.Addr, destination netip.AddrPort) {
	laptop, _ = netip.AddrFromSlice(id.RemoteAddress.AsSlice())
	address, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	return laptop, netip.AddrPortFrom(address, id.LocalPort)
}

// tcp answers a SYN. The laptop sees the connection accepted only when the destination has accepted
// it.
func (f *forwarder) tcp(r *tcp.ForwarderRequest) {
	laptop, destination := flowEnds(r.ID())
	f.wg.Go(func() {
		if !f.allow(destination.Addr()) {
			r.Complete(true)
			return
		}
		out, err := f.connect(f.ctx, destination)
		if err != nil {
			// A destination that stays silent gets no answer here either: the laptop's own time-out
			// is the truth. All other errors are an answer.
			var timeout net.Error
			r.Complete(!errors.As(err, &timeout) || !timeout.Timeout())
			return
		}
		var queue waiter.Queue
		endpoint, tcpErr := r.CreateEndpoint(&queue)
		if tcpErr != nil {
			r.Complete(true)
			_ = out.Close()
			return
		}
		r.Complete(false)
		endpoint.SocketOptions().SetDelayOption(false)
		endpoint.SocketOptions().SetKeepAlive(true)
		flow := &tcpFlow{TCPConn: gonet.NewTCPConn(&queue, endpoint), endpoint: endpoint}
		end := func() { flow.Abort(); netx.Abort(out) }
		defer f.flows.add(laptop, end)()
		netx.Splice(flow, out)
	})
}

func (f *forwarder) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if f.translate != nil {
		to = f.translate(to)
	}
	return f.dialer.DialContext(ctx, network, to.String())
}

// tcpFlow is a netstack connection that can be reset.
type tcpFlow struct {
	*gonet.TCPConn
	endpoint tcpip.Endpoint
}

// Abort sends a RST.
func (c *tcpFlow) Abort() { c.endpoint.Abort() }

// flowTable knows the open flows of each laptop, so that they can be reset together. The zero value
// is empty.
type flowTable struct {
	// mu guards the fields below.
	mu    sync.Mutex
	next  uint64
	flows map[netip.Addr]map[uint64]func()
}

// add remembers how to end a flow, and returns how to forget it.
func (t *flowTable) add(laptop netip.Addr, end func()) (remove func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.next++
	id := t.next
	if t.flows == nil {
		t.flows = map[netip.Addr]map[uint64]func(){}
	}
	if t.flows[laptop] == nil {
		t.flows[laptop] = map[uint64]func(){}
	}
	t.flows[laptop][id] = end
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.flows[laptop], id)
		if len(t.flows[laptop]) == 0 {
			delete(t.flows, laptop)
		}
	}
}

// reset ends the flows of a laptop; the zero address stands for all laptops.
func (t *flowTable) reset(laptop netip.Addr) {
	t.mu.Lock()
	var ending []func()
	for address, flows := range t.flows {
		if address != laptop && laptop.IsValid() {
			continue
		}
		for _, end := range flows {
			ending = append(ending, end)
		}
	}
	t.mu.Unlock()
	for _, end := range ending {
		end()
	}
}
