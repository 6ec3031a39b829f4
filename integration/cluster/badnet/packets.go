package badnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	// backlog is how long a datagram waits at most for those before it on a narrow link; what would
	// wait longer is lost.
	backlog = 100 * time.Millisecond
	// inFlight is how many datagrams may be on their way in each direction.
	inFlight = 1 << 14
	// socketBuffer is asked of the kernel, so that what is lost is lost on purpose.
	socketBuffer = 4 << 20
)

// PacketRelay passes datagrams on to a target, and its answers back, as a NAT does: each sender
// gets a port of its own. All methods may be called at any time, from any goroutine.
type PacketRelay struct {
	conn     *net.UDPConn
	target   *net.UDPAddr
	up, down packetLink
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu      sync.Mutex
	senders map[netip.AddrPort]*net.UDPConn
}

// packetLink is one direction.
type packetLink struct {
	mu      sync.Mutex
	delay   time.Duration
	rate    int64 // bits a second, 0 without limit
	loss    float64
	stalled bool
	free    time.Time // when the link has sent all it was given
	queue   chan flying
}

// flying is a datagram on its way.
type flying struct {
	arrival time.Time
	send    func([]byte)
	data    []byte
}

// ListenPacket starts a relay of datagrams from the address listen to the address target; the rest
// is as with Listen.
func ListenPacket(ctx context.Context, listen, target string) (*PacketRelay, error) {
	to, err := net.ResolveUDPAddr("udp", target)
	if err != nil {
		return nil, fmt.Errorf("the relay's target: %w", err)
	}
	var config net.ListenConfig
	conn, err := config.ListenPacket(ctx, "udp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for the relay to %s: %w", target, err)
	}
	ctx, stop := context.WithCancel(ctx)
	r := &PacketRelay{conn: conn.(*net.UDPConn), target: to, stop: stop, senders: map[netip.AddrPort]*net.UDPConn{}}
	_ = r.conn.SetReadBuffer(socketBuffer)
	for _, l := range []*packetLink{&r.up, &r.down} {
		l.queue = make(chan flying, inFlight)
		r.running.Go(func() { l.deliver(ctx) })
	}
	r.running.Go(r.receive)
	r.running.Go(func() {
		<-ctx.Done()
		_ = r.conn.Close()
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, c := range r.senders {
			_ = c.Close()
		}
		r.senders = nil
	})
	return r, nil
}

// Addr is where the relay listens, as host:port.
func (r *PacketRelay) Addr() string { return r.conn.LocalAddr().String() }

// Delay makes a round trip d longer than it is without, half of it each way.
func (r *PacketRelay) Delay(d time.Duration) {
	r.up.set(func(l *packetLink) { l.delay = d / 2 })
	r.down.set(func(l *packetLink) { l.delay = d - d/2 })
}

// Rate limits each direction to so many bits a second, for all senders together; 0 is no limit, as
// at first.
func (r *PacketRelay) Rate(bitsPerSecond int64) {
	r.both(func(l *packetLink) { l.rate, l.free = bitsPerSecond, time.Time{} })
}

// Loss loses that share of the datagrams in each direction, at random.
func (r *PacketRelay) Loss(share float64) { r.both(func(l *packetLink) { l.loss = share }) }

// Stall makes the relay lose everything, until it is called with false.
func (r *PacketRelay) Stall(stalled bool) { r.both(func(l *packetLink) { l.stalled = stalled }) }

// Close returns when nothing of the relay runs any more.
func (r *PacketRelay) Close() {
	r.stop()
	r.running.Wait()
}

func (r *PacketRelay) both(change func(*packetLink)) {
	r.up.set(change)
	r.down.set(change)
}

func (l *packetLink) set(change func(*packetLink)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change(l)
}

// carry takes a datagram, or loses it.
func (l *packetLink) carry(data []byte, send func([]byte)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stalled || rand.Float64() < l.loss {
		return
	}
	sent := time.Now()
	if l.rate > 0 {
		if l.free.Sub(sent) > backlog {
			return
		}
		if l.free.Before(sent) {
			l.free = sent
		}
		l.free = l.free.Add(time.Duration(float64(len(data)) * 8 / float64(l.rate) * float64(time.Second)))
		sent = l.free
	}
	select {
	case l.queue <- flying{sent.Add(l.delay), send, data}:
	default:
	}
}

func (l *packetLink) deliver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case f := <-l.queue:
			if !sleepUntil(f.arrival, ctx.Done()) {
				return
			}
			f.send(f.data)
		}
	}
}

func (r *PacketRelay) receive() {
	buffer := make([]byte, 64<<10)
	for {
		n, from, err := r.conn.ReadFromUDPAddrPort(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		if c := r.sender(from); c != nil {
			r.up.carry(append([]byte(nil), buffer[:n]...), func(data []byte) { _, _ = c.Write(data) })
		}
	}
}

// sender is the socket that stands for a sender towards the target.
func (r *PacketRelay) sender(from netip.AddrPort) *net.UDPConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.senders == nil {
		return nil // closed
	}
	if c, ok := r.senders[from]; ok {
		return c
	}
	c, err := net.DialUDP("udp", nil, r.target)
	if err != nil {
		return nil
	}
	_ = c.SetReadBuffer(socketBuffer)
	r.senders[from] = c
	r.running.Go(func() {
		buffer := make([]byte, 64<<10)
		for {
			n, err := c.Read(buffer)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil { // else nobody listens there now
				r.down.carry(append([]byte(nil), buffer[:n]...),
					func(data []byte) { _, _ = r.conn.WriteToUDPAddrPort(data, from) })
			}
		}
	})
	return c
}
