package netstack

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// udpIdle ends a UDP flow without traffic. A flow of DNS is one question and its answer, and
	// there are very many, so that dnsIdle is shorter.
	udpIdle = time.Minute
	dnsIdle = 5 * time.Second
	dnsPort = 53
	// maxUDPFlows is how many flows a laptop may have. Beyond it the flow that has been idle for
	// the longest ends.
	maxUDPFlows = 1024
)

// udpFlow carries datagrams between netstack and a socket. It holds a buffer only while there is a
// datagram.
type udpFlow struct {
	endpoint tcpip.Endpoint
	queue    *waiter.Queue
	in       *gonet.UDPConn // the same endpoint
	out      net.Conn
	lastUsed atomic.Int64 // when the last datagram passed, in Unix nanoseconds
	ended    chan struct{}
	end      func()
}

func (f *forwarder) udp(r *udp.ForwarderRequest) bool {
	laptop, destination := flowEnds(r.ID())
	if !f.allow(destination.Addr()) {
		return false
	}
	flow := &udpFlow{queue: new(waiter.Queue), ended: make(chan struct{})}
	var tcpErr tcpip.Error
	if flow.endpoint, tcpErr = r.CreateEndpoint(flow.queue); tcpErr != nil {
		return false
	}
	flow.in = gonet.NewUDPConn(flow.queue, flow.endpoint)
	f.wg.Go(func() {
		defer flow.in.Close()
		var err error
		if flow.out, err = f.dial(f.ctx, "udp", destination); err != nil {
			return
		}
		flow.end = sync.OnceFunc(func() { close(flow.ended); _ = flow.in.Close(); _ = flow.out.Close() })
		defer flow.end()
		defer f.flows.add(laptop, flow.end)()
		defer f.datagrams.add(laptop, flow)()
		idle := udpIdle
		if destination.Port() == dnsPort {
			idle = dnsIdle
		}
		flow.run(idle)
	})
	return true
}

// run carries datagrams both ways until none has passed for a while.
func (u *udpFlow) run(idle time.Duration) {
	u.touch()
	var watch *time.Timer
	watch = time.AfterFunc(idle, func() {
		if remaining := idle - time.Since(time.Unix(0, u.lastUsed.Load())); remaining > 0 {
			watch.Reset(remaining)
			return
		}
		u.end()
	})
	defer watch.Stop()
	var back sync.WaitGroup
	back.Go(func() { defer u.end(); u.copy(datagramsOf(u.out), u.in) })
	entry, readable := waiter.NewChannelEntry(waiter.ReadableEvents)
	u.queue.EventRegister(&entry)
	defer u.queue.EventUnregister(&entry)
	u.copy(func(d *datagram) error { return u.fromLaptop(d, readable) }, u.out)
	u.end()
	back.Wait()
}

func (u *udpFlow) touch() { u.lastUsed.Store(time.Now().UnixNano()) }

func (u *udpFlow) copy(next func(*datagram) error, to net.Conn) {
	for {
		var d datagram
		err := next(&d)
		if err == nil {
			u.touch()
			_, err = to.Write(d.bytes())
		}
		d.free()
		// A refusal is an ICMP answer to one datagram. The flow may live on.
		if err != nil && !errors.Is(err, syscall.ECONNREFUSED) {
			return
		}
	}
}

// fromLaptop waits for a datagram from the laptop.
func (u *udpFlow) fromLaptop(d *datagram, readable <-chan struct{}) error {
	for {
		_, err := u.endpoint.Read(d, tcpip.ReadOptions{})
		if err == nil {
			return nil
		}
		if _, wait := err.(*tcpip.ErrWouldBlock); !wait {
			return errors.New(err.String())
		}
		select {
		case <-readable:
		case <-u.ended:
			return net.ErrClosed
		}
	}
}

// datagramBuffers have room for any datagram.
var datagramBuffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// datagram has a buffer only after something was written to it.
type datagram struct {
	buf *[]byte
	n   int
}

func (d *datagram) room() []byte {
	if d.buf == nil {
		d.buf = datagramBuffers.Get().(*[]byte)
	}
	return (*d.buf)[d.n:]
}

// Write appends.
func (d *datagram) Write(b []byte) (int, error) {
	n := copy(d.room(), b)
	d.n += n
	return n, nil
}

func (d *datagram) bytes() []byte {
	if d.buf == nil {
		return nil
	}
	return (*d.buf)[:d.n]
}

func (d *datagram) free() {
	if d.buf != nil {
		datagramBuffers.Put(d.buf)
		d.buf, d.n = nil, 0
	}
}

// udpFlows bounds how many flows of datagrams each laptop has.
type udpFlows struct {
	limit int // 0 is maxUDPFlows

	// mu guards the fields below.
	mu  sync.Mutex
	all map[netip.Addr][]*udpFlow
}

// add makes room for a flow and returns how to forget it.
func (t *udpFlows) add(laptop netip.Addr, flow *udpFlow) (remove func()) {
	flow.touch()
	most := t.limit
	if most == 0 {
		most = maxUDPFlows
	}
	var oldest *udpFlow
	t.mu.Lock()
	if t.all == nil {
		t.all = map[netip.Addr][]*udpFlow{}
	}
	if all := t.all[laptop]; len(all) >= most {
		oldest = slices.MinFunc(all, func(a, b *udpFlow) int { return int(a.lastUsed.Load() - b.lastUsed.Load()) })
		t.all[laptop] = without(all, oldest)
	}
	t.all[laptop] = append(t.all[laptop], flow)
	t.mu.Unlock()
	if oldest != nil {
		oldest.end()
	}
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.all[laptop] = without(t.all[laptop], flow); len(t.all[laptop]) == 0 {
			delete(t.all, laptop)
		}
	}
}

// count is the number of a laptop's flows.
func (t *udpFlows) count(laptop netip.Addr) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.all[laptop])
}

func without(all []*udpFlow, flow *udpFlow) []*udpFlow {
	return slices.DeleteFunc(all, func(o *udpFlow) bool { return o == flow })
}
