package agent

import (
	"context"
	"errors"
	"net"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/tlspeek"
	"github.com/detour-dev/detour/pkg/traffic/agent/apptls"
	"github.com/detour-dev/detour/pkg/traffic/agent/copies"
	"github.com/detour-dev/detour/pkg/traffic/agent/exchange"
	"github.com/detour-dev/detour/pkg/traffic/agent/h2"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	"github.com/detour-dev/detour/pkg/traffic/agent/passthrough"
	"github.com/detour-dev/detour/pkg/traffic/agent/raw"
	"github.com/detour-dev/detour/pkg/traffic/agent/report"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
)

// passthroughPolicy returns what the passthrough does with traffic that begins now on a port.
func (a *agent) passthroughPolicy(port uint16) passthrough.Policy {
	p := a.table.Port(port)
	switch {
	case p != nil && p.Tailed, a.table.Global(port) != nil:
		return passthrough.HandOverAll
	case a.ByRequest(port):
		return passthrough.ByRequest
	default:
		return passthrough.ToApp
	}
}

// chooseEarly tells the passthrough what becomes of a request, and whether the app alone gets it.
// While the pod ends it never does, because each answer has to say so, which the passthrough
// cannot.
func (a *agent) chooseEarly(port uint16, h *http1.Head) (choice any, app bool) {
	c := a.table.Choose(port, &route.Request{Method: h.Method, Target: h.Target, Values: h.Values})
	if c.ForApp() && !a.PodEnding() {
		return nil, true
	}
	return c, false
}

// take serves a connection that the passthrough has handed over, in a goroutine that accept waits
// for.
func (a *agent) take(ctx context.Context, h passthrough.Handover) {
	a.life.clients.Go(func() {
		defer h.Client.Close()
		// A clean end would make what was cut look whole.
		stop := context.AfterFunc(ctx, func() { netx.Abort(h.Client) })
		defer stop()
		a.serve(ctx, h)
	})
}

// serve serves a connection that the passthrough has handed over, to its end.
func (a *agent) serve(ctx context.Context, h passthrough.Handover) {
	next := &upstream.Handover{First: h.First, Used: h.Used, Head: h.Head}
	next.Choice, _ = h.Choice.(*intercepts.Choice)
	if h.App != nil {
		next.Up = &upstream.Upstream{Conn: h.App}
	}
	for next != nil {
		next = a.serveOnce(ctx, h.Client, h.Port, next)
	}
}

// serveOnce serves a connection request by request if it is HTTP, and else as raw bytes. It returns
// what is left to be served, or nil.
func (a *agent) serveOnce(
	ctx context.Context, client *net.TCPConn, port uint16, h *upstream.Handover,
) *upstream.Handover {
	byRequest := a.ByRequest(port) || h.Refused
	if byRequest && !h.Opaque && len(h.First) == 0 {
		h.First = firstBytes(client)
	}
	protocol := sniff.Classify(h.First)
	switch {
	case h.Opaque:
		return raw.New(a, client, port, true).Serve(ctx, h.First, h.Up)
	case byRequest && tlspeek.StartsTLS(h.First):
		return a.serveTLS(ctx, client, port, h)
	case protocol == sniff.HTTP2 && (byRequest || h.Up != nil):
		a.serveHTTP2(client, port, h)
		return nil
	case protocol == sniff.HTTP1, byRequest && sniff.BeginsRequest(h.First):
		return exchange.New(a.exchangeConfig(), client, port, h).Serve(ctx)
	case h.Refused:
		netx.Abort(client) // not HTTP, so nobody can tell the client why
		return nil
	default:
		return raw.New(a, client, port, false).Serve(ctx, h.First, h.Up)
	}
}

// firstBytes returns what a client says first; nothing if it waits for the app to speak.
func firstBytes(client *net.TCPConn) []byte {
	_ = client.SetReadDeadline(time.Now().Add(upstream.FirstBytesTimeout))
	defer func() { _ = client.SetReadDeadline(time.Time{}) }()
	b := make([]byte, 4<<10)
	n, _ := client.Read(b)
	return b[:n]
}

// serveTLS serves a client that begins with TLS. It returns what is left to be served if the TLS
// cannot end here.
func (a *agent) serveTLS(
	ctx context.Context, client *net.TCPConn, port uint16, h *upstream.Handover,
) *upstream.Handover {
	dial := func(ctx context.Context) (net.Conn, error) { return a.dialer.App(ctx, client, port) }
	c, err := a.ports.Accept(ctx, client, port, h, dial)
	switch {
	case errors.Is(err, apptls.ErrUnread):
		a.life.tasks.Go(func() { a.ports.ProbeAgain(ctx, port) })
		return &upstream.Handover{First: h.First, Up: h.Up, Opaque: true}
	case err != nil:
		a.log.Debug("a client gave up its TLS handshake", "port", port, "err", err)
		return nil
	}
	defer c.Close() // the end of TLS, if it was not cut
	defer c.CloseUnused()
	inside, err := c.Handover()
	switch {
	case err != nil: // the client has gone
	case c.HTTP2():
		a.serveHTTP2(c, port, inside)
	default:
		if !inside.Opaque {
			inside = exchange.New(a.exchangeConfig(), c, port, inside).Serve(ctx)
		}
		if inside != nil {
			raw.New(a, c, port, true).Serve(ctx, inside.First, inside.Up)
		}
	}
	return nil
}

func (a *agent) serveHTTP2(client net.Conn, port uint16, h *upstream.Handover) {
	c := h2.New(h2.Config{Host: a, Log: a.log, Life: a.life.all, Go: a.life.tasks.Go}, client, port, h)
	a.Register(c)
	defer a.Unregister(c)
	c.Review() // something may have changed before Register
	c.Serve()
}

func (a *agent) exchangeConfig() exchange.Config {
	return exchange.Config{
		Host: a, Log: a.log, Stopping: a.life.stopping, Heads: a.limits.heads, HeadTimeout: a.limits.headTimeout,
	}
}

// The methods below implement exchange.Host, raw.Host and h2.Host.

// Choose returns what becomes of a request.
func (a *agent) Choose(port uint16, r *route.Request) *intercepts.Choice {
	return a.table.Choose(port, r)
}

// Global returns the intercept that takes everything on a port, or nil for the app.
func (a *agent) Global(port uint16) *intercepts.Target { return a.table.Global(port) }

// ByRequest reports whether the requests on a port have to be looked at one by one.
func (a *agent) ByRequest(port uint16) bool {
	p := a.table.Port(port)
	return p.ByRequest() || p == nil && a.leaving()
}

// Open connects a client to the laptop of want, or to the app.
func (a *agent) Open(
	ctx context.Context, want *intercepts.Target, client net.Conn, port uint16,
) (*upstream.Upstream, error) {
	return a.dialer.Open(ctx, want, client, port)
}

// DialLaptop connects a client to a laptop.
func (a *agent) DialLaptop(ctx context.Context, t *intercepts.Target, client net.Conn) (net.Conn, error) {
	return a.dialer.Laptop(ctx, t, client)
}

// Copy begins to copy a client's requests to the laptop of a wiretap.
func (a *agent) Copy(ctx context.Context, to *intercepts.Target, client net.Conn) *copies.Stream {
	return copies.New(ctx, copies.Config{
		Dial:   func(ctx context.Context) (net.Conn, error) { return a.dialer.Laptop(ctx, to, client) },
		Budget: a.limits.copies,
		OnLost: func(n uint64) { a.DropCopies(to.Uid, n) },
		Go:     a.life.tasks.Go,
		Log:    a.log.With("intercept", to.Uid),
	})
}

// DropCopies counts copies that the laptop of an intercept does not get.
func (a *agent) DropCopies(uid string, n uint64) { a.report.Drop(uid, n) }

// Follow begins to report a request; it returns nil if nobody tails the port.
func (a *agent) Follow(port uint16, method, target string) *report.Request {
	if p := a.table.Port(port); p == nil || !p.Tailed {
		return nil
	}
	return a.report.Follow(port, method, target)
}

// PodEnding reports whether clients have to open another connection for their next request.
func (a *agent) PodEnding() bool { return a.life.podEnding.Load() }

// Stopping returns the context that ends when the agent has to end.
func (a *agent) Stopping() context.Context { return a.life.stopping }

// Register makes the agent call r.Review whenever what is in force has changed.
func (a *agent) Register(r raw.Reviewer) { a.reviewers.Store(r, nil) }

// Unregister ends what Register began.
func (a *agent) Unregister(r raw.Reviewer) { a.reviewers.Delete(r) }

// review makes all HTTP/2 connections check whether their client has to open another one. Each has
// a goroutine, because a client that reads nothing must not hold up the others.
func (a *agent) review() {
	a.reviewers.Range(func(r, _ any) bool { a.life.tasks.Go(r.(raw.Reviewer).Review); return true })
}
