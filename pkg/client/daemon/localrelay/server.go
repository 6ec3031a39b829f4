// Package localrelay joins the connections that the traffic-manager relays to local ports of this
// laptop. Start with Listen.
package localrelay

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/vif"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	headerTimeout = 5 * time.Second
	localTimeout  = time.Second
	// drainTimeout is how long a relayed connection may go on after its intercept has ended.
	drainTimeout = 10 * time.Second
	// quietPeriod is how long a local process that owes no answer must be silent before its last
	// answer counts as complete.
	quietPeriod = 50 * time.Millisecond
)

// Server accepts relayed connections. It serves only the intercepts of this laptop.
type Server struct {
	log       *slog.Logger
	dial      vif.DialFunc
	ctx       context.Context //nolint:containedctx // it is the server's lifetime
	stop      context.CancelFunc
	listeners []net.Listener
	running   sync.WaitGroup // accept loops and connections

	// mu guards the fields below.
	mu     sync.Mutex
	ports  map[string]uint16      // by the intercept's UID
	conns  map[io.Closer]string   // the intercept's UID
	timers map[string]*time.Timer // of ended intercepts, by UID
}

// Listen serves on the laptop's addresses in the tunnel, of which only the first must succeed: IPv6
// may be off. place is where the local processes listen. The caller ends the server with Close.
func Listen(addresses []netip.Addr, place dnsproxy.Network, log *slog.Logger) (*Server, error) {
	r := newServer(place.Dial, log)
	for i, a := range addresses {
		l, err := place.Listen("tcp", netip.AddrPortFrom(a, relay.LaptopPort).String())
		if err != nil {
			if i > 0 {
				continue
			}
			r.Close()
			return nil, err
		}
		r.serveListener(l)
	}
	return r, nil
}

func newServer(dial vif.DialFunc, log *slog.Logger) *Server {
	ctx, stop := context.WithCancel(context.Background())
	return &Server{
		log: log, dial: dial, ctx: ctx, stop: stop,
		ports: map[string]uint16{}, conns: map[io.Closer]string{}, timers: map[string]*time.Timer{},
	}
}

// serveListener accepts from l until Close, which closes l.
func (r *Server) serveListener(l net.Listener) {
	r.listeners = append(r.listeners, l)
	r.running.Go(func() { r.accept(l) })
}

// Add relays the connections of an intercept to a local port from now on.
func (r *Server) Add(uid string, port uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ports[uid] = port
}

// Remove ends the relaying for an intercept. Its open connections may go on for drainTimeout.
func (r *Server) Remove(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ports, uid)
	for _, u := range r.conns {
		if u == uid && r.timers[uid] == nil {
			r.timers[uid] = time.AfterFunc(drainTimeout, func() {
				r.closeConns(func(u string) bool { return u == uid })
			})
		}
	}
}

// Drain waits until the local processes have answered all requests, for drainTimeout at most.
func (r *Server) Drain(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, drainTimeout)
	defer done()
	for r.owesAnswers() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(quietPeriod):
		}
	}
}

// owesAnswers reports whether a local process works on a request.
func (r *Server) owesAnswers() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		if streams, ok := c.(*mux.Conn); ok && streams.ActiveStreams() > 0 {
			return true
		}
	}
	return false
}

// closeConns closes the connections of the intercepts that match accepts.
func (r *Server) closeConns(match func(uid string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, uid := range r.conns {
		if match(uid) {
			r.running.Go(func() { _ = c.Close() })
		}
	}
}

// Close closes everything and waits for it.
func (r *Server) Close() {
	r.stop()
	for _, l := range r.listeners {
		_ = l.Close()
	}
	r.mu.Lock()
	for _, t := range r.timers {
		t.Stop()
	}
	r.mu.Unlock()
	r.closeConns(func(string) bool { return true })
	r.running.Wait()
}

func (r *Server) accept(l net.Listener) {
	netx.AcceptLoop(l, r.log, func(c net.Conn) {
		r.running.Go(func() {
			defer c.Close()
			r.serve(c)
		})
	})
}

// serve reads the header of a relayed connection and joins it to its local port until it ends.
func (r *Server) serve(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(headerTimeout))
	header, err := relay.ReadHeader(c)
	if err != nil {
		r.log.Debug("a relayed connection had no header", "err", err)
		return
	}
	var conn io.Closer = c
	var streams *mux.Conn
	if header.Multiplexed {
		streams = mux.New(c, func(*agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) {
			return r.openLocal(header.InterceptUid)
		})
		conn = streams
	}
	port, ok := r.register(conn, header.InterceptUid)
	if !ok {
		_ = relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_UNKNOWN_INTERCEPT)
		return
	}
	defer r.unregister(conn)
	switch {
	case streams != nil:
		if relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_MULTIPLEXED) == nil {
			_ = c.SetDeadline(time.Time{})
			r.log.Debug("a relay connection has ended", "err", streams.Run())
		}
	case header.Datagrams:
		if relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_OK) == nil {
			_ = c.SetDeadline(time.Time{})
			r.serveDatagrams(c, port)
		}
	default:
		r.serveBytes(c, port)
	}
}

// serveBytes splices one TCP connection.
func (r *Server) serveBytes(c net.Conn, port uint16) {
	local, err := DialLocal(r.ctx, r.dial, port)
	if err != nil {
		_ = relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_REFUSED)
		return
	}
	if err := relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_OK); err != nil {
		_ = local.Close()
		return
	}
	_ = c.SetDeadline(time.Time{})
	netx.Splice(c, local)
}

// register notes a connection of an intercept, if the laptop has that intercept.
func (r *Server) register(conn io.Closer, uid string) (port uint16, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if port, ok = r.ports[uid]; ok {
		r.conns[conn] = uid
	}
	return port, ok
}

func (r *Server) unregister(conn io.Closer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.conns, conn)
}

// openLocal opens the local connection for a stream of an intercept.
func (r *Server) openLocal(uid string) (net.Conn, agentv1.RelayStatus) {
	r.mu.Lock()
	port, ok := r.ports[uid]
	r.mu.Unlock()
	if !ok {
		return nil, agentv1.RelayStatus_RELAY_STATUS_UNKNOWN_INTERCEPT
	}
	local, err := DialLocal(r.ctx, r.dial, port)
	if err != nil {
		return nil, agentv1.RelayStatus_RELAY_STATUS_REFUSED
	}
	return local, agentv1.RelayStatus_RELAY_STATUS_OK
}

// DialLocal connects to a local TCP port, over IPv4 or else IPv6.
func DialLocal(ctx context.Context, dial vif.DialFunc, port uint16) (net.Conn, error) {
	try := func(loopback string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, localTimeout)
		defer cancel()
		return dial(ctx, "tcp", net.JoinHostPort(loopback, strconv.Itoa(int(port))))
	}
	c, err := try("127.0.0.1")
	if err != nil {
		return try("::1")
	}
	return c, nil
}
