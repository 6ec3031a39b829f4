// Package badnet is a bad network for the suites: relays of TCP and UDP that can be slow, narrow,
// silent, lossy or broken, changed at any time. It needs neither privileges nor tc, and it is in
// the way of the connections only that were told to go through it.
package badnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Relay passes TCP connections on to a target. All methods may be called at any time, from any
// goroutine.
type Relay struct {
	listener net.Listener
	target   string
	weather  weather
	up, down link
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu    sync.Mutex
	pairs map[*pair]struct{}
}

// Listen starts a relay from the address listen (port 0 for any) to the address target. It lives
// until ctx ends or Close. It listens in the network namespace of the calling thread, as in
// laptop.Do, but calls the target from that of the process: so routes that a program under test
// makes in its laptop do not bend the relay's own way to the target.
func Listen(ctx context.Context, listen, target string) (*Relay, error) {
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for the relay to %s: %w", target, err)
	}
	ctx, stop := context.WithCancel(ctx)
	r := &Relay{listener: listener, target: target, stop: stop, pairs: map[*pair]struct{}{}}
	r.running.Go(func() { r.accept(ctx) })
	r.running.Go(func() {
		<-ctx.Done()
		_ = listener.Close()
		r.Cut() // who blocks in a read or a write
	})
	return r, nil
}

// Addr is where the relay listens, as host:port.
func (r *Relay) Addr() string { return r.listener.Addr().String() }

// Delay makes a round trip d longer than it is without, half of it each way. It is for bytes, not
// for the handshake of TCP, which the kernel does. What is on its way keeps the delay it set off
// with.
func (r *Relay) Delay(d time.Duration) {
	r.up.setDelay(d / 2)
	r.down.setDelay(d - d/2)
}

// Rate limits each direction to so many bits a second, for all connections together; 0 is no limit,
// as at first.
func (r *Relay) Rate(bitsPerSecond int64) {
	r.up.setRate(bitsPerSecond)
	r.down.setRate(bitsPerSecond)
}

// Stall makes the relay pass nothing, neither bytes nor ends of connections, until it is called
// with false. Connections stay open and new ones are accepted, as when a laptop sleeps or a NAT
// forgets it. What was being written at that moment may still arrive.
func (r *Relay) Stall(stalled bool) { r.weather.stall(stalled) }

// Cut resets all connections, on both sides, also when stalled. New ones are served.
func (r *Relay) Cut() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for p := range r.pairs {
		p.reset()
	}
}

// Close resets all connections and returns when nothing of the relay runs any more.
func (r *Relay) Close() {
	r.stop()
	r.running.Wait()
}

func (r *Relay) accept(ctx context.Context) {
	for {
		conn, err := r.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			slog.Warn("the relay cannot accept", "target", r.target, "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond): // such as too many open files
			}
			continue
		}
		p := newPair(ctx, conn.(*net.TCPConn))
		r.mu.Lock()
		r.pairs[p] = struct{}{}
		r.mu.Unlock()
		r.running.Go(func() {
			r.serve(p)
			r.mu.Lock()
			defer r.mu.Unlock()
			delete(r.pairs, p)
		})
	}
}

// serve passes a connection on until both directions have ended or one side is reset.
func (r *Relay) serve(p *pair) {
	defer p.end()
	var d net.Dialer
	conn, err := d.DialContext(p.ctx, "tcp", r.target)
	if err != nil {
		slog.Debug("the relay does not reach its target", "target", r.target, "error", err)
		p.reset()
		return
	}
	if !p.attach(conn.(*net.TCPConn)) {
		return
	}
	up := newPipe(p, p.client, p.target, &r.up, &r.weather)
	down := newPipe(p, p.target, p.client, &r.down, &r.weather)
	var pumps sync.WaitGroup
	pumps.Go(up.read)
	pumps.Go(down.read)
	pumps.Go(func() { up.write(down) })
	pumps.Go(func() { down.write(up) })
	pumps.Wait()
}
