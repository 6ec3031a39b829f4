package daemon

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
	localTimeout = time.Second
	// drainTimeout is how long a relayed connection may go on after its intercept has ended.
	drainTimeout = 10 * time.Second
	// quietAfter is how long a local process that owes no answer may say nothing before its answer counts as whole.
	quietAfter = 50 * time.Millisecond
)

// relayServer takes the connections that the traffic-manager relays and joins them to local ports. It serves only the
// intercepts of this laptop.
type relayServer struct {
	log       *slog.Logger
	dial      vif.DialFunc
	listeners []net.Listener
	open      sync.WaitGroup

	mu    sync.Mutex
	ports map[string]uint16      // by intercept UID
	conns map[io.Closer]string   // to the intercept's UID
	timer map[string]*time.Timer // of ended intercepts
}

func newRelayServer(addresses []netip.Addr, place dnsproxy.Network, log *slog.Logger) (*relayServer, error) {
	r := &relayServer{log: log, dial: place.Dial, ports: map[string]uint16{}, conns: map[io.Closer]string{}, timer: map[string]*time.Timer{}}
	for i, a := range addresses {
		l, err := place.Listen("tcp", netip.AddrPortFrom(a, relay.LaptopPort).String())
		if err != nil {
			if i > 0 {
				continue // IPv6 is off on this laptop
			}
			r.close()
			return nil, err
		}
		r.listeners = append(r.listeners, l)
		r.open.Go(func() { r.accept(l) })
	}
	return r, nil
}

func (r *relayServer) add(uid string, port uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ports[uid] = port
}

// remove lets what is open finish within drainTimeout.
func (r *relayServer) remove(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ports, uid)
	for _, u := range r.conns {
		if u == uid && r.timer[uid] == nil {
			r.timer[uid] = time.AfterFunc(drainTimeout, func() { r.end(func(u string) bool { return u == uid }) })
		}
	}
}

// finish waits until local processes have answered what they were asked, for drainTimeout at most.
func (r *relayServer) finish(ctx context.Context) {
	ctx, done := context.WithTimeout(ctx, drainTimeout)
	defer done()
	for r.working() && sleep(ctx, quietAfter) == nil {
	}
}

func (r *relayServer) working() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for c := range r.conns {
		if streams, ok := c.(*mux.Conn); ok {
			n += streams.ActiveStreams()
		}
	}
	return n > 0
}

func (r *relayServer) end(which func(uid string) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c, uid := range r.conns {
		if which(uid) {
			r.open.Go(func() { _ = c.Close() })
		}
	}
}

func (r *relayServer) close() {
	for _, l := range r.listeners {
		_ = l.Close()
	}
	r.mu.Lock()
	for _, t := range r.timer {
		t.Stop()
	}
	r.mu.Unlock()
	r.end(func(string) bool { return true })
	r.open.Wait()
}

func (r *relayServer) accept(l net.Listener) {
	netx.AcceptLoop(l, r.log, func(c net.Conn) {
		r.open.Go(func() {
			defer c.Close()
			r.serve(c)
		})
	})
}

func (r *relayServer) serve(c net.Conn) {
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	header, err := relay.ReadHeader(c)
	if err != nil {
		r.log.Debug("a relayed connection had no header", "err", err)
		return
	}
	var conn io.Closer = c
	var streams *mux.Conn
	if header.Multiplexed {
		streams = mux.New(c, func(*agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) { return r.openLocal(header.InterceptUid) })
		conn = streams
	}
	r.mu.Lock()
	port, ok := r.ports[header.InterceptUid]
	if ok {
		r.conns[conn] = header.InterceptUid
	}
	r.mu.Unlock()
	if !ok {
		_ = relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_UNKNOWN_INTERCEPT)
		return
	}
	defer func() {
		r.mu.Lock()
		delete(r.conns, conn)
		r.mu.Unlock()
	}()
	if streams != nil {
		if relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_MULTIPLEXED) == nil {
			_ = c.SetDeadline(time.Time{})
			r.log.Debug("a connection of streams has ended", "err", streams.Run())
		}
		return
	}
	if header.Datagrams {
		if relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_OK) == nil {
			_ = c.SetDeadline(time.Time{})
			r.datagrams(c, port)
		}
		return
	}
	local, err := dialLocal(r.dial, port)
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

// openLocal opens what a stream of an intercept leads to.
func (r *relayServer) openLocal(uid string) (net.Conn, agentv1.RelayStatus) {
	r.mu.Lock()
	port, ok := r.ports[uid]
	r.mu.Unlock()
	if !ok {
		return nil, agentv1.RelayStatus_RELAY_STATUS_UNKNOWN_INTERCEPT
	}
	local, err := dialLocal(r.dial, port)
	if err != nil {
		return nil, agentv1.RelayStatus_RELAY_STATUS_REFUSED
	}
	return local, agentv1.RelayStatus_RELAY_STATUS_OK
}

func dialLocal(dial vif.DialFunc, port uint16) (net.Conn, error) {
	try := func(loopback string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(context.Background(), localTimeout)
		defer cancel()
		return dial(ctx, "tcp", net.JoinHostPort(loopback, strconv.Itoa(int(port))))
	}
	c, err := try("127.0.0.1")
	if err != nil {
		return try("::1")
	}
	return c, nil
}
