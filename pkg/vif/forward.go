package vif

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

// forwarder ends the laptops' flows in netstack and carries them on with the cluster's ordinary sockets.
type forwarder struct {
	ctx    context.Context
	allow  func(netip.Addr) bool
	target func(netip.AddrPort) netip.AddrPort // what is dialled in a destination's place; nil for the destination itself
	dialer net.Dialer
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

// ends are the addresses of a flow: from a laptop, to what it dialled.
func ends(id stack.TransportEndpointID) (laptop netip.Addr, destination netip.AddrPort) {
	laptop, _ = netip.AddrFromSlice(id.RemoteAddress.AsSlice())
	address, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	return laptop, netip.AddrPortFrom(address, id.LocalPort)
}

// tcp answers a SYN: only when the destination accepted does the laptop see the connection accepted.
func (f *forwarder) tcp(r *tcp.ForwarderRequest) {
	laptop, destination := ends(r.ID())
	f.wg.Go(func() {
		if !f.allow(destination.Addr()) {
			r.Complete(true)
			return
		}
		out, err := f.connect(f.ctx, destination)
		if err != nil {
			// Silence for a silent destination: the laptop's own time-out is the truth. Everything else is an answer.
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
		end := func() { flow.Abort(); abortSocket(out) }
		defer f.flows.add(laptop, end)()
		Splice(flow, out)
	})
}

func (f *forwarder) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if f.target != nil {
		to = f.target(to)
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

// abortSocket closes a socket with a RST where it is TCP, also below TLS, whose own end would make what was cut look whole.
func abortSocket(c net.Conn) {
	below := c
	for {
		upper, ok := below.(interface{ NetConn() net.Conn })
		if !ok {
			break
		}
		below = upper.NetConn()
	}
	if t, ok := below.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = below.Close()
	_ = c.Close()
}

func abort(c net.Conn) {
	if a, ok := c.(interface{ Abort() }); ok {
		a.Abort()
		_ = c.Close()
		return
	}
	abortSocket(c)
}

// Splice copies both ways until both directions have ended, and closes both. An end of stream on one side is passed on as a
// half-close, a reset as a reset.
func Splice(a, b net.Conn) {
	a, b = netx.Wrap(a), netx.Wrap(b)
	var both sync.WaitGroup
	direction := func(from, to net.Conn) {
		if err := netx.Copy(to, from); err != nil {
			abort(from)
			abort(to)
			return
		}
		if w, ok := to.(interface{ CloseWrite() error }); ok {
			_ = w.CloseWrite()
		} else {
			_ = to.Close()
		}
	}
	both.Go(func() { direction(a, b) })
	direction(b, a)
	both.Wait()
	_ = a.Close()
	_ = b.Close()
}

// flowTable knows the open flows of each laptop, so that they can be reset together.
type flowTable struct {
	mu    sync.Mutex
	next  uint64
	flows map[netip.Addr]map[uint64]func()
}

// add remembers how to end a flow and returns how to forget it.
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

// reset ends the flows of a laptop; of all laptops when the address is the zero value.
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
