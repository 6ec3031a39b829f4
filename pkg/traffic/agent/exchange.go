package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/netx/spin"
	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
)

// lingerTimeout is how long a client may go on to send what nobody reads before its connection is closed.
const lingerTimeout = time.Second

// exchange serves one client's HTTP/1 connection request by request. Each request goes to the laptop of the intercept that takes
// it, or to the app. Heads and bodies are passed on byte by byte as they came. What is not plain HTTP/1 leaves the exchange, with
// the rest of the connection: rawConn passes it on.
//
// A goroutine sends a request with a body, because its answer may begin earlier, and a timer may watch the client. The others
// belong to the goroutine of serve.
type exchange struct {
	agent *agent
	port  uint16
	local net.Conn // the client's connection, as it was accepted or as its TLS ends here
	// client is local with its buffers. The sending goroutine reads it, and clientWatch while nothing else does.
	client *side
	// upstreams are the open connections, by target; nil is the app.
	upstreams map[*target]*side
	taps      map[*target]*tap

	current current // the request that is served now
	sending sending
	watch   clientWatch
	idle    idle
	head    headLimit
	wait    waitStyle
}

// current is one request.
type current struct {
	seen   *seen
	choice *choice
	// Only the first request has these: its head, if it was parsed already, and the intercept whose laptop has just been found
	// unreachable.
	request *http1.Head
	skip    *target
}

// waitStyle is what decides how to wait for the next request.
type waitStyle struct {
	answered bool     // a request has been answered
	last     net.Conn // the upstream that answered it
	spin     spin.Policy
}

// newExchange returns an exchange for a client's connection, which the caller closes. The exchange owns the upstream of h.
func (a *agent) newExchange(client net.Conn, port uint16, h *handover) *exchange {
	e := &exchange{
		agent: a, port: port, local: client,
		upstreams: map[*target]*side{}, taps: map[*target]*tap{},
		wait: waitStyle{answered: h.used},
	}
	first := h.first
	if h.head != nil {
		e.current.request, e.current.choice = h.head, h.choice
		first = first[len(h.head.Raw):]
	}
	e.client = newSide(client, first)
	e.head.start(e)
	if h.up != nil {
		up := newSide(h.up.Conn, h.up.said)
		up.used = h.used
		e.upstreams[h.up.target] = up
		e.current.skip = h.up.instead
	}
	return e
}

// serve serves requests until one side ends the connection. It returns a handover for a connection that is not HTTP/1.
func (e *exchange) serve(ctx context.Context) *handover {
	defer e.end()
	for _, u := range e.upstreams {
		u.stop = context.AfterFunc(ctx, func() { _ = u.Conn.Close() })
	}
	stop := e.idle.endWith(e.agent.stopping, e.local)
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
			// Who answers raw bytes also answers half a head that ends, or does not.
			e.agent.log.Debug("the rest of a connection is not HTTP/1", "port", e.port, "err", err)
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
func (e *exchange) next() (*http1.Head, error) {
	if parsed := e.current.request; parsed != nil {
		e.current.request = nil
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
func (e *exchange) awaitRequest() bool {
	if e.client.r.Buffered() > 0 {
		return true
	}
	for t, u := range e.upstreams {
		if t != nil && t.ctx.Err() != nil { // its intercept has ended
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

// soon reports whether the next request is likely to come soon: a laptop that serves nobody else has answered the last one.
func (e *exchange) soon() bool {
	s, ok := e.wait.last.(*mux.Stream)
	return ok && s.Alone()
}

func (e *exchange) end() {
	e.watch.end()
	for _, u := range e.upstreams {
		_ = u.Close()
	}
	for _, t := range e.taps {
		t.end()
	}
}

// leave returns the rest of the connection, of which first was read already, with the upstream that it belongs to.
func (e *exchange) leave(first []byte) *handover {
	h := &handover{first: append(first, e.client.unread()...), opaque: true}
	want := e.agent.wanted(e.port)
	if u := e.upstreams[want]; u != nil {
		delete(e.upstreams, want)
		h.up = &upstream{Conn: u.detach(), target: want, said: u.unread()}
	}
	return h
}

// serveRequest serves one request. It reports whether the connection goes on.
func (e *exchange) serveRequest(ctx context.Context, request *http1.Head) (goesOn bool, err error) {
	if e.current.choice == nil {
		e.current.choice = e.agent.choose(e.port, requestOf(request))
	}
	owner, want := e.current.choice.owner, e.current.choice.laptop
	if want == e.current.skip {
		want = nil
	}
	e.current.skip = nil
	e.current.seen = e.agent.see(e.port, request.Method, request.Target)
	e.current.seen.owned(owner)
	defer func() { e.current.seen.end() }()
	taps := e.openTaps(ctx)
	copies := make([]io.Writer, len(taps))
	for i, t := range taps {
		copies[i] = t
		t.begin()
		defer t.complete()
	}
	var body replayBuffer
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
		e.current.seen.went(owner, got)
		goesOn, lost, err := e.roundTrip(up, request, &body, copies)
		if goesOn && err == nil {
			e.wait.answered, e.wait.last = true, up.Conn
			return true, nil
		}
		_ = up.Close()
		delete(e.upstreams, got)
		if !lost || attempt > 0 {
			return false, err
		}
		copies = nil // they have it
		if errors.Is(err, laptop.ErrUnreachable) {
			if want.ErrorOnFailure {
				return false, e.answerUnavailable()
			}
			want = nil // another relay connection may not have noticed the silence yet
		}
	}
}

// openTaps returns the laptops that get a copy of the request. A copy never fails and never waits.
func (e *exchange) openTaps(ctx context.Context) []*tap {
	var all []*tap
	for _, t := range e.current.choice.taps {
		if e.taps[t] == nil || e.taps[t].broken() {
			e.taps[t] = e.agent.newTap(ctx, t, e.local)
		}
		e.current.seen.copied(t)
		all = append(all, e.taps[t])
	}
	return all
}

// answerUnavailable answers in place of a laptop that is unreachable, where the app must not.
func (e *exchange) answerUnavailable() error {
	const text = "detour: the laptop that intercepts this request is unreachable\n"
	e.current.seen.answered(503)
	if _, err := fmt.Fprintf(e.client.w, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text); err != nil {
		return err
	}
	if err := e.client.w.Flush(); err != nil {
		return err
	}
	return e.finish()
}

// finish ends the connection to the client in order. With unread bytes of a request, closing would be a reset, which takes the
// answer with it.
func (e *exchange) finish() error {
	netx.CloseWrite(e.client.Conn)
	return e.client.SetReadDeadline(time.Now().Add(lingerTimeout))
}

// upstream returns the open connection to a target's laptop or to the app, or makes one. The app takes the place of an unreachable
// laptop.
func (e *exchange) upstream(ctx context.Context, want *target) (*side, *target, error) {
	if u := e.upstreams[want]; u != nil {
		u.takeBuffer()
		if u.r.Buffered() == 0 && alive(u.Conn) {
			return u, want, nil
		}
		_ = u.Close()
		delete(e.upstreams, want)
	}
	c, got, err := e.agent.open(ctx, want, e.local, e.port)
	if err != nil {
		return nil, nil, err
	}
	u := newSide(c, nil)
	u.stop = context.AfterFunc(ctx, func() { _ = c.Close() })
	if old := e.upstreams[got]; old != nil {
		_ = old.Close()
	}
	e.upstreams[got] = u
	return u, got, nil
}
