package agent

import (
	"context"
	"maps"
	"net"
	"strconv"
	"sync"

	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/traffic/agent/http2"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
)

// http2Client is a client's connection of HTTP/2, gRPC among it, whose requests are routed one by one. Each client has connections of its
// own to the app and to laptops.
type http2Client struct {
	agent *agent
	conn  net.Conn
	port  uint16
	sw    *http2.Switch
	host  *target // has all of the connection in the app's place; nil for none
	app   *http2.Way
	ways  map[http2Way]*http2.Way

	mu    sync.Mutex
	first *upstream // that there is already, until somebody uses it
}

// http2Way tells a client's ways apart.
type http2Way struct {
	of    *target
	http1 bool // its process does not speak HTTP/2
}

// serveHTTP2 carries a client's connection, of which some was already read, to its end. up is a connection that there is already, to the app
// or a laptop, or nil.
func (a *agent) serveHTTP2(client net.Conn, port uint16, first []byte, up *upstream) {
	c := &http2Client{agent: a, conn: client, port: port, first: up, ways: map[http2Way]*http2.Way{}}
	defer c.closeFirst()
	c.app = &http2.Way{Dial: c.dialApp, Over: a.life}
	config := http2.Config{App: c.app, Route: c.route, Go: a.conns.Go}
	if up != nil && len(up.said) > 0 {
		up.Conn = &netx.PrefixedConn{Conn: up.Conn, Prefix: up.said}
	}
	if up != nil && up.target != nil {
		c.host = up.target
		config.Host = c.way(c.host, false)
	}
	c.sw = http2.New(a.life, &netx.PrefixedConn{Conn: netx.Wrap(client), Prefix: first}, config)
	a.framed.Store(c, nil)
	defer a.framed.Delete(c)
	c.review()
	c.sw.Serve()
}

// review asks the client to open another connection when the pod ends, or the intercept whose laptop was its host. Which laptop or app gets a
// request is decided for each.
func (c *http2Client) review() {
	if c.agent.podEnding.Load() || (c.host != nil && c.host.ctx.Err() != nil) {
		c.sw.Leave()
	}
}

// route says where a request goes.
func (c *http2Client) route(r *http2.Request) http2.Route {
	if r.Tunnel() { // is its host's to refuse
		if all := c.agent.wanted(c.port); all != nil {
			return http2.Route{Way: c.way(all, false), Strict: all.ErrorOnFailure}
		}
		return http2.Route{}
	}
	chosen := c.agent.choose(c.port, &route.Request{Method: r.Method, Target: r.Target, Values: r.Values})
	seen := c.agent.see(c.port, r.Method, r.Target)
	seen.owned(chosen.owner)
	to := http2.Route{Way: c.app}
	if want := chosen.laptop; want != nil {
		to.Way, to.Strict = c.way(want, r.GRPC()), want.ErrorOnFailure
	}
	for _, tap := range chosen.taps {
		seen.copied(tap)
		to.Copies = append(to.Copies, c.way(tap, r.GRPC()))
	}
	if seen != nil {
		to.Watch = &watched{seen: seen, client: c, owner: chosen.owner}
	}
	return to
}

// way is the way to a laptop for a request. A process that speaks in the clear, behind an app with TLS, seldom speaks HTTP/2, but gRPC is
// nothing else.
func (c *http2Client) way(t *target, grpc bool) *http2.Way {
	kind := http2Way{of: t, http1: t.LocalPlaintext && securedOf(c.conn) != nil && !grpc}
	if known := c.ways[kind]; known != nil {
		return known
	}
	maps.DeleteFunc(c.ways, func(_ http2Way, w *http2.Way) bool { return w.Over.Err() != nil })
	w := &http2.Way{Over: t.ctx, Dial: func(ctx context.Context) (net.Conn, error) { return c.dialLaptop(ctx, kind) }, Ask: question, Again: repeatable}
	if t.Wiretap {
		w.Lost = func(n uint64) { c.agent.report.drop(t, n) }
	}
	c.ways[kind] = w
	return w
}

func (c *http2Client) dialLaptop(ctx context.Context, kind http2Way) (net.Conn, error) {
	if first := c.take(kind.of); first != nil {
		return first, nil
	}
	dial := func(ctx context.Context) (net.Conn, error) { return c.agent.dialLaptop(ctx, kind.of, c.conn) }
	conn, err := dial(ctx)
	if err != nil {
		c.agent.log.Debug("the laptop cannot be had", "intercept", kind.of.Uid, "err", err)
		return nil, err
	}
	if kind.http1 || !speaksHTTP2(conn) {
		return c.agent.translate(conn, dial), nil
	}
	return conn, nil
}

// question asks on the stream to a laptop whether a request was taken.
func question(c net.Conn, untaken func()) (answered func() bool) {
	s := laptop.StreamOf(c)
	if s == nil {
		return nil
	}
	return s.Track(untaken).Done
}

// take is the connection that there was already, if it leads to a target, or to the app for nil, once.
func (c *http2Client) take(to *target) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.first
	if first == nil || first.target != to {
		return nil
	}
	c.first = nil
	return first.Conn
}

// closeFirst closes it if nobody needed it.
func (c *http2Client) closeFirst() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first != nil {
		_ = c.first.Close()
		c.first = nil
	}
}

func (c *http2Client) dialApp(ctx context.Context) (net.Conn, error) {
	if first := c.take(nil); first != nil {
		return netx.Wrap(first), nil
	}
	conn, _, err := c.agent.open(ctx, nil, c.conn, c.port)
	if err != nil {
		return nil, err
	}
	return netx.Wrap(conn), nil
}

// watched is a request that somebody wants to see.
type watched struct {
	*seen
	client *http2Client
	owner  *target
}

// Went implements http2.Watcher.
func (w *watched) Went(way *http2.Way) {
	to := w.owner
	if way == w.client.app {
		to = nil
	}
	w.went(w.owner, to)
}

// Answered implements http2.Watcher.
func (w *watched) Answered(status int) { w.answered(status) }

// Ended implements http2.Watcher.
func (w *watched) Ended(grpcStatus string) {
	if code, err := strconv.ParseUint(grpcStatus, 10, 32); err == nil {
		w.GrpcStatus = proto.Uint32(uint32(code))
	}
	w.end()
}
