package exchange

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/netx/spin"
	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/traffic/agent/budget"
	"github.com/detour-dev/detour/pkg/traffic/agent/copies"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/replay"
	"github.com/detour-dev/detour/pkg/traffic/agent/report"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
)

// lingerTimeout is how long a client may go on to send what nobody reads before its connection is
// closed.
const lingerTimeout = time.Second

// errDraining is the error of a connection that is closed while it waits for a request, because the
// agent ends.
var errDraining = errors.New("the agent ends")

// Host is what an Exchange needs of its agent. Its methods are called by many goroutines.
type Host interface {
	// Choose decides where a request goes. Global returns the intercept of traffic that is not a
	// request; nil means that the traffic goes to the app.
	Choose(port uint16, r *route.Request) *intercepts.Choice
	Global(port uint16) *intercepts.Target
	// Open connects a client to the laptop of want, or to the app; see upstream.Dialer.
	Open(ctx context.Context, want *intercepts.Target, client net.Conn, port uint16) (*upstream.Upstream, error)
	// Copy begins to copy a client's requests to the laptop of a wiretap.
	Copy(ctx context.Context, to *intercepts.Target, client net.Conn) *copies.Stream
	// Follow begins to report a request; it returns nil if nobody tails the port.
	Follow(port uint16, method, target string) *report.Request
	// PodEnding reports whether clients have to open another connection for their next request.
	PodEnding() bool
}

// Config is what the Exchanges of an agent share.
type Config struct {
	Host        Host
	Log         *slog.Logger
	Stopping    context.Context // when it ends, idle connections are closed
	Heads       *budget.Budget  // of incomplete heads; see MaxIncompleteHeads
	HeadTimeout time.Duration   // see DefaultHeadTimeout
}

// Exchange serves one client's HTTP/1 connection request by request.
//
// A goroutine sends a request with a body, because its answer may begin earlier, and a timer may
// watch the client. The other fields belong to the goroutine of Serve.
type Exchange struct {
	config Config
	port   uint16
	local  net.Conn // the client's connection, as it was accepted or as its TLS ends here
	// client is local with its buffers. The sending goroutine reads it, and clientWatch while
	// nothing else does.
	client *side
	// upstreams are the open connections, by target; nil is the app.
	upstreams map[*intercepts.Target]*side
	copies    map[*intercepts.Target]*copies.Stream

	current current // the request that is served now
	sending sending
	watch   clientWatch
	idle    idle
	head    headLimit
	wait    waitStyle
}

// current is one request.
type current struct {
	report *report.Request
	choice *intercepts.Choice
	// Only the first request has these: its head, if it was parsed already, and the intercept whose
	// laptop has just been found unreachable.
	parsed *http1.Head
	skip   *intercepts.Target
}

// waitStyle is what decides how to wait for the next request.
type waitStyle struct {
	answered bool     // a request has been answered
	last     net.Conn // the upstream that answered it
	spin     spin.Policy
}

// New returns an Exchange for a client's connection to a port, which the caller closes. The
// Exchange owns the upstream of h.
func New(config Config, client net.Conn, port uint16, h *upstream.Handover) *Exchange {
	e := &Exchange{
		config: config, port: port, local: client,
		upstreams: map[*intercepts.Target]*side{}, copies: map[*intercepts.Target]*copies.Stream{},
		wait: waitStyle{answered: h.Used},
	}
	first := h.First
	if h.Head != nil {
		e.current.parsed, e.current.choice = h.Head, h.Choice
		first = first[len(h.Head.Raw):]
	}
	e.client = newSide(client, first)
	e.head.init(e.client, config.HeadTimeout, config.Heads)
	if h.Up != nil {
		up := newSide(h.Up.Conn, h.Up.Said)
		up.used = h.Used
		e.upstreams[h.Up.Target] = up
		e.current.skip = h.Up.Instead
	}
	return e
}

// Serve serves requests until one side ends the connection or ctx ends. It returns a Handover for a
// connection that is not HTTP/1, and otherwise nil.
func (e *Exchange) Serve(ctx context.Context) *upstream.Handover {
	defer e.end()
	for _, u := range e.upstreams {
		u.stop = context.AfterFunc(ctx, func() { _ = u.Conn.Close() })
	}
	stop := e.idle.endWith(e.config.Stopping, e.local)
	defer stop()
	for {
		e.client.to = nil
		request, err := e.next()
		switch {
		case errors.Is(err, errDraining):
			_ = e.finish()
			return nil
		case errors.Is(err, http1.ErrUnclear),
			len(request.Raw) > 0 && (errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded)):
			// The upstream receives the bytes as they are, and decides itself how to answer them.
			// That includes a head that ends half-way.
			e.config.Log.Debug("the rest of a connection is not HTTP/1", "port", e.port, "err", err)
			return e.leave(request.Raw)
		case err != nil:
			return nil // the client closed an idle connection
		}
		if goesOn, err := e.serveRequest(ctx, request); err != nil {
			netx.Abort(e.local) // a clean end would make what was cut look whole
			return nil
		} else if !goesOn {
			return nil
		}
	}
}

// next reads the next request.
func (e *Exchange) next() (*http1.Head, error) {
	if parsed := e.current.parsed; parsed != nil {
		e.current.parsed = nil
		return parsed, nil
	}
	e.current.choice = nil
	if !e.awaitRequest() {
		return &http1.Head{}, errDraining
	}
	request, err := http1.ReadRequest(e.client.r, e.head.room)
	e.head.end()
	return request, err
}

// awaitRequest waits for the next request. It returns false if the agent ends first.
func (e *Exchange) awaitRequest() bool {
	if e.client.r.Buffered() > 0 {
		return true
	}
	for t, u := range e.upstreams {
		if t != nil && t.Ctx.Err() != nil { // its intercept has ended
			_ = u.Close()
			delete(e.upstreams, t)
			continue
		}
		u.releaseBuffer()
	}
	e.idle.set(true)
	var err error
	if !e.soon() || !netx.SpinUntilReadable(e.client.Conn, &e.wait.spin) {
		err = e.client.await()
	}
	if err == nil {
		_, err = e.client.r.Peek(1)
	}
	e.idle.set(false)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// soon reports whether the next request is likely to come soon: a laptop that serves nobody else
// has answered the last one.
func (e *Exchange) soon() bool {
	s, ok := e.wait.last.(*mux.Stream)
	return ok && s.Alone()
}

func (e *Exchange) end() {
	e.watch.end()
	for _, u := range e.upstreams {
		_ = u.Close()
	}
	for _, c := range e.copies {
		c.End()
	}
}

// leave returns the rest of the connection, of which first was read already, with the upstream that
// it belongs to.
func (e *Exchange) leave(first []byte) *upstream.Handover {
	h := &upstream.Handover{First: append(first, e.client.unread()...), Opaque: true}
	want := e.config.Host.Global(e.port)
	if u := e.upstreams[want]; u != nil {
		delete(e.upstreams, want)
		h.Up = &upstream.Upstream{Conn: u.detach(), Target: want, Said: u.unread()}
	}
	return h
}

// serveRequest serves one request. It reports whether the connection goes on.
func (e *Exchange) serveRequest(ctx context.Context, request *http1.Head) (goesOn bool, err error) {
	if e.current.choice == nil {
		r := &route.Request{Method: request.Method, Target: request.Target, Values: request.Values}
		e.current.choice = e.config.Host.Choose(e.port, r)
	}
	owner, want := e.current.choice.Owner, e.current.choice.Laptop
	if want == e.current.skip {
		want = nil
	}
	e.current.skip = nil
	e.current.report = e.config.Host.Follow(e.port, request.Method, request.Target)
	e.current.report.SetOwner(owner.UID())
	defer func() { e.current.report.End() }()
	streams := e.openCopies(ctx)
	writers := make([]io.Writer, len(streams))
	for i, c := range streams {
		writers[i] = c
		c.Begin()
		defer c.Complete()
	}
	var body replay.Buffer
	for attempt := 0; ; attempt++ {
		up, got, err := e.upstream(ctx, want)
		if errors.Is(err, laptop.ErrUnreachable) {
			return false, e.answerUnavailable()
		}
		if err != nil && e.wait.answered {
			return false, e.finish() // the app has ended in order since its last answer: so do we
		}
		if err != nil {
			return false, err
		}
		e.current.report.SetLaptop(got != nil)
		goesOn, lost, err := e.roundTrip(up, request, &body, writers)
		if goesOn && err == nil {
			e.wait.answered, e.wait.last = true, up.Conn
			return true, nil
		}
		_ = up.Close()
		delete(e.upstreams, got)
		if !lost || attempt > 0 {
			return false, err
		}
		writers = nil // the copies have it
		if errors.Is(err, laptop.ErrUnreachable) {
			if want.ErrorOnFailure {
				return false, e.answerUnavailable()
			}
			want = nil // another relay connection may not have noticed the silence yet
		}
	}
}

// openCopies returns the streams that get a copy of the request. A copy never fails and never
// waits.
func (e *Exchange) openCopies(ctx context.Context) []*copies.Stream {
	var all []*copies.Stream
	for _, t := range e.current.choice.Copies {
		if e.copies[t] == nil || e.copies[t].Broken() {
			e.copies[t] = e.config.Host.Copy(ctx, t, e.local)
		}
		e.current.report.AddCopy(t.Uid)
		all = append(all, e.copies[t])
	}
	return all
}

// answerUnavailable answers in place of a laptop that is unreachable, where the app must not.
func (e *Exchange) answerUnavailable() error {
	const text = "detour: the laptop that intercepts this request is unreachable\n"
	e.current.report.SetStatus(503)
	if _, err := fmt.Fprintf(e.client.w, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text); err != nil {
		return err
	}
	if err := e.client.w.Flush(); err != nil {
		return err
	}
	return e.finish()
}

// finish ends the connection to the client in order. With unread bytes of a request, closing would
// be a reset, which takes the answer with it.
func (e *Exchange) finish() error {
	netx.CloseWrite(e.client.Conn)
	return e.client.SetReadDeadline(time.Now().Add(lingerTimeout))
}

// upstream returns the open connection to a target's laptop or to the app, or makes one. The app
// takes the place of an unreachable laptop.
func (e *Exchange) upstream(ctx context.Context, want *intercepts.Target) (*side, *intercepts.Target, error) {
	if u := e.upstreams[want]; u != nil {
		u.takeBuffer()
		if u.r.Buffered() == 0 && upstream.Alive(u.Conn) {
			return u, want, nil
		}
		_ = u.Close()
		delete(e.upstreams, want)
	}
	opened, err := e.config.Host.Open(ctx, want, e.local, e.port)
	if err != nil {
		return nil, nil, err
	}
	u := newSide(opened.Conn, nil)
	u.stop = context.AfterFunc(ctx, func() { _ = opened.Close() })
	if old := e.upstreams[opened.Target]; old != nil {
		_ = old.Close()
	}
	e.upstreams[opened.Target] = u
	return u, opened.Target, nil
}
