// Package h2 serves a client's HTTP/2 connection, gRPC included, request by request. It tells the
// router of package http2 where each request goes and how to get there. Start with Client.
package h2

import (
	"context"
	"log/slog"
	"maps"
	"net"
	"strconv"
	"sync"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/traffic/agent/http2"
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/replay"
	"github.com/detour-dev/detour/pkg/traffic/agent/report"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
)

// Host is what a Client needs of its agent. Its methods are called by many goroutines.
type Host interface {
	// Choose decides where a request goes. Global returns the intercept of traffic that is not a
	// request; nil means that the traffic goes to the app.
	Choose(port uint16, r *route.Request) *intercepts.Choice
	Global(port uint16) *intercepts.Target
	// Open connects a client to the laptop of want, or to the app. DialLaptop never connects to the
	// app. See upstream.Dialer.
	Open(ctx context.Context, want *intercepts.Target, client net.Conn, port uint16) (*upstream.Upstream, error)
	DialLaptop(ctx context.Context, t *intercepts.Target, client net.Conn) (net.Conn, error)
	// Follow begins to report a request; it returns nil if nobody tails the port. DropCopies counts
	// copies that were lost.
	Follow(port uint16, method, target string) *report.Request
	DropCopies(uid string, n uint64)
	// PodEnding reports whether clients have to open another connection for their next request.
	PodEnding() bool
}

// Config is what the Clients of an agent share.
type Config struct {
	Host Host
	Log  *slog.Logger
	Life context.Context // when it ends, all requests end
	// Go runs a task; the agent waits for it.
	Go func(task func())
}

// Client is a client's connection. It has connections of its own to the app and to laptops.
type Client struct {
	config Config
	conn   net.Conn
	port   uint16
	router *http2.Router
	// host takes the connection's own frames in the app's place; nil for the app.
	host     *intercepts.Target
	app      *http2.Backend
	backends map[backendKey]*http2.Backend // the router calls Route from one goroutine, which needs no lock

	// mu guards the fields below.
	mu    sync.Mutex
	first *upstream.Upstream // the connection that existed before, until a request uses it
}

// backendKey identifies a backend of a Client.
type backendKey struct {
	target    *intercepts.Target
	translate bool // the process is not asked to speak HTTP/2
}

// New returns a Client for a connection to a port, of which h has what was read. The caller closes
// the connection. The Client owns the upstream of h, and uses it for its first request.
func New(config Config, conn net.Conn, port uint16, h *upstream.Handover) *Client {
	c := &Client{config: config, conn: conn, port: port, first: h.Up, backends: map[backendKey]*http2.Backend{}}
	c.app = &http2.Backend{Dial: c.dialApp, Life: config.Life}
	router := http2.Config{App: c.app, Route: c.route, Go: config.Go}
	if up := h.Up; up != nil {
		if len(up.Said) > 0 {
			up.Conn = &netx.PrefixedConn{Conn: up.Conn, Prefix: up.Said}
		}
		if up.Target != nil {
			c.host = up.Target
			router.Host = c.backend(c.host, false)
		}
	}
	c.router = http2.New(config.Life, &netx.PrefixedConn{Conn: netx.Wrap(conn), Prefix: h.First}, router)
	return c
}

// Serve serves requests until the connection ends.
func (c *Client) Serve() {
	defer c.closeFirst()
	c.router.Serve()
}

// Review asks the client to open another connection if the pod ends, or if the intercept whose
// laptop is the host has ended. Other changes need no new connection, because each request is
// routed for itself.
func (c *Client) Review() {
	if c.config.Host.PodEnding() || (c.host != nil && c.host.Ctx.Err() != nil) {
		c.router.Leave()
	}
}

// route returns where a request goes.
func (c *Client) route(r *http2.Request) http2.Route {
	host := c.config.Host
	if r.Tunnel() { // the host refuses it
		if all := host.Global(c.port); all != nil {
			return http2.Route{Backend: c.backend(all, false), Strict: all.ErrorOnFailure}
		}
		return http2.Route{}
	}
	choice := host.Choose(c.port, &route.Request{Method: r.Method, Target: r.Target, Values: r.Values})
	followed := host.Follow(c.port, r.Method, r.Target)
	followed.SetOwner(choice.Owner.UID())
	to := http2.Route{Backend: c.app}
	if want := choice.Laptop; want != nil {
		to.Backend, to.Strict = c.backend(want, r.GRPC()), want.ErrorOnFailure
	}
	for _, t := range choice.Copies {
		followed.AddCopy(t.Uid)
		to.Copies = append(to.Copies, c.backend(t, r.GRPC()))
	}
	if followed != nil {
		to.Watch = &watcher{request: followed, app: c.app}
	}
	return to
}

// backend returns the backend of a laptop for a request. Behind an app with TLS, a process that
// speaks plaintext seldom speaks HTTP/2; but gRPC is always HTTP/2.
func (c *Client) backend(t *intercepts.Target, grpc bool) *http2.Backend {
	_, secure := c.conn.(upstream.TLSClient)
	key := backendKey{target: t, translate: t.LocalPlaintext && secure && !grpc}
	if known := c.backends[key]; known != nil {
		return known
	}
	maps.DeleteFunc(c.backends, func(_ backendKey, w *http2.Backend) bool { return w.Life.Err() != nil })
	w := &http2.Backend{
		Life:     t.Ctx,
		Dial:     func(ctx context.Context) (net.Conn, error) { return c.dialLaptop(ctx, key) },
		Track:    track,
		MayRetry: replay.Repeatable,
	}
	if t.Wiretap {
		w.Lost = func(n uint64) { c.config.Host.DropCopies(t.Uid, n) }
	}
	c.backends[key] = w
	return w
}

func (c *Client) dialLaptop(ctx context.Context, key backendKey) (net.Conn, error) {
	if first := c.take(key.target); first != nil {
		return first, nil
	}
	dial := func(ctx context.Context) (net.Conn, error) {
		return c.config.Host.DialLaptop(ctx, key.target, c.conn)
	}
	conn, err := dial(ctx)
	if err != nil {
		c.config.Log.Debug("the laptop is unreachable", "intercept", key.target.Uid, "err", err)
		return nil, err
	}
	if key.translate || !speaksHTTP2(conn) {
		return translate(conn, dial, c.config.Go), nil
	}
	return conn, nil
}

// track begins to follow whether a laptop takes a request; see http2.Backend.
func track(c net.Conn, untaken func()) (answered func() bool) {
	s := laptop.StreamOf(c)
	if s == nil {
		return nil
	}
	return s.Track(untaken).Done
}

// take returns the connection that existed before if it leads to a target, or to the app for nil,
// and only once.
func (c *Client) take(to *intercepts.Target) net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.first
	if first == nil || first.Target != to {
		return nil
	}
	c.first = nil
	return first.Conn
}

// closeFirst closes it if no request has used it.
func (c *Client) closeFirst() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.first != nil {
		_ = c.first.Close()
		c.first = nil
	}
}

func (c *Client) dialApp(ctx context.Context) (net.Conn, error) {
	if first := c.take(nil); first != nil {
		return netx.Wrap(first), nil
	}
	up, err := c.config.Host.Open(ctx, nil, c.conn, c.port)
	if err != nil {
		return nil, err
	}
	return netx.Wrap(up.Conn), nil
}

// watcher reports a request that somebody tails. It implements http2.Watcher.
type watcher struct {
	request *report.Request
	app     *http2.Backend
}

// Went implements http2.Watcher.
func (w *watcher) Went(backend *http2.Backend) { w.request.SetLaptop(backend != w.app) }

// Answered implements http2.Watcher.
func (w *watcher) Answered(status int) { w.request.SetStatus(status) }

// Ended implements http2.Watcher.
func (w *watcher) Ended(grpcStatus string) {
	if code, err := strconv.ParseUint(grpcStatus, 10, 32); err == nil {
		w.request.SetGRPCStatus(uint32(code))
	}
	w.request.End()
}
