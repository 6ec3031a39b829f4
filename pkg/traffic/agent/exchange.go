package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/netx/spin"
	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/passthrough"
)

const (
	// With the header of a frame (pkg/relay/mux) a full buffer is one record of TLS.
	exchangeBuffer = 16<<10 - 8
	// bulk is how much is gathered for a client before it waits for what has come from its laptop already.
	bulk = exchangeBuffer / 2
	// lingering is how long a client may go on to send what nobody reads before its connection is closed.
	lingering = time.Second
)

// exchange serves one client's HTTP/1 connection request by request: each goes to the laptop whose match it meets, or to the app. Heads
// and bodies are passed on byte by byte as they came. What is not plain HTTP/1 goes to the app, and with it the rest of the connection.
type exchange struct {
	agent  *agent
	client *link
	local  net.Conn
	port   uint16
	// upstreams that are open, by route; nil is the app.
	upstreams map[*target]*link
	taps      map[*target]*tap
	seen      *seen // the request that is served now
	sending   sending
	watching  watching
	idle      idle
	head      heads
	more      func(n int) bool // is room, made once
	kept      bool             // a request has been answered
	last      net.Conn         // who has answered it
	gain      spin.Policy
}

func (a *agent) newExchange(client net.Conn, h passthrough.Handover) *exchange {
	e := &exchange{agent: a, client: newLink(client, h.First), local: client, port: h.Port, upstreams: map[*target]*link{}, taps: map[*target]*tap{}, kept: h.Kept}
	e.more = e.room
	if h.App != nil {
		app := newLink(h.App, nil)
		app.used = h.Kept
		e.upstreams[nil] = app
	}
	return e
}

// serve goes on until one side ends the connection.
func (e *exchange) serve(ctx context.Context) {
	defer e.end()
	for _, u := range e.upstreams {
		u.forget = context.AfterFunc(ctx, func() { _ = u.Conn.Close() })
	}
	forget := e.idle.endWith(e.agent.stopping, e.local)
	defer forget()
	for {
		e.client.to = nil
		if !e.begins() {
			_ = e.finish()
			return
		}
		request, err := http1.ReadRequest(e.client.r, e.more)
		e.headEnds()
		switch {
		case errors.Is(err, http1.ErrUnclear) || len(request.Raw) > 0 && (errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded)):
			// Half a head and an end, or no end, is for the app to answer, too.
			e.agent.log.Debug("the rest of a connection is the app's", "port", e.port, "err", err)
			e.raw(ctx, request.Raw)
			return
		case err != nil:
			return // idle, and gone
		}
		if again, err := e.one(ctx, request); err != nil {
			netx.Abort(e.local) // what was cut must not look whole
			return
		} else if !again {
			return
		}
	}
}

// begins waits for the next request. It says whether to read one: not when the agent ends.
func (e *exchange) begins() bool {
	if e.client.r.Buffered() > 0 {
		return true
	}
	for _, u := range e.upstreams {
		u.rest()
	}
	e.idle.wait(true)
	var err error
	if !e.alone() || !netx.SpinUntilReadable(e.client.Conn, &e.gain) {
		err = e.client.await()
	}
	if err == nil {
		_, err = e.client.r.Peek(1)
	}
	e.idle.wait(false)
	return !errors.Is(err, os.ErrDeadlineExceeded)
}

// alone says whether a laptop has answered the last request that nobody else asks anything now. Its next one comes soon then, or it is not in a hurry.
func (e *exchange) alone() bool {
	s, ok := e.last.(*mux.Stream)
	return ok && s.Alone()
}

func (e *exchange) end() {
	if e.watching.timer != nil {
		e.watching.timer.Stop()
	}
	for _, u := range e.upstreams {
		_ = u.Close()
	}
	for _, t := range e.taps {
		t.end()
	}
}

// one is one request and its answers. It says whether the connection goes on.
func (e *exchange) one(ctx context.Context, request *http1.Head) (again bool, err error) {
	r := asked(request)
	owner, want := e.agent.choose(e.port, r)
	e.seen = e.agent.see(e.port, request.Method, request.Target)
	e.seen.owned(owner)
	defer func() { e.seen.end() }()
	taps := e.copies(ctx, r)
	copies := make([]io.Writer, len(taps))
	for i, t := range taps {
		copies[i] = t
		t.begin()
		defer t.complete()
	}
	var body kept
	for attempt := 0; ; attempt++ {
		up, key, err := e.upstream(ctx, want)
		if errors.Is(err, laptop.ErrUnreachable) {
			e.seen.answered(503)
			return false, e.unavailable()
		}
		if err != nil && e.kept {
			return false, e.finish() // the app has ended since, in order: so do we
		}
		if err != nil {
			return false, err
		}
		e.seen.went(owner, key)
		again, lost, err := e.with(up, request, &body, copies)
		if again && err == nil {
			e.kept, e.last = true, up.Conn
			return true, nil
		}
		_ = up.Close()
		delete(e.upstreams, key)
		if lost && attempt == 0 {
			copies = nil // they have it
			if errors.Is(err, laptop.ErrUnreachable) {
				if want.ErrorOnFailure {
					e.seen.answered(503)
					return false, e.unavailable()
				}
				want = nil // another lane may not have been found silent yet
			}
			continue // nothing of the client's is gone
		}
		return false, err
	}
}

// copies are the laptops that get a copy of a request. A copy never fails and never waits.
func (e *exchange) copies(ctx context.Context, r *route.Request) []*tap {
	var all []*tap
	for _, t := range e.agent.tapped(e.port, r) {
		if e.taps[t] == nil || e.taps[t].broken() {
			e.taps[t] = e.agent.newTap(ctx, t, e.local)
		}
		e.seen.copied(t)
		all = append(all, e.taps[t])
	}
	return all
}

// unavailable answers in place of a laptop that cannot be had, where the app shall not.
func (e *exchange) unavailable() error {
	const text = "detour: the laptop that intercepts this request cannot be had\n"
	if _, err := fmt.Fprintf(e.client.w, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(text), text); err != nil {
		return err
	}
	if err := e.client.w.Flush(); err != nil {
		return err
	}
	return e.finish()
}

// with exchanges request and answers with an upstream. body is what was kept of an attempt before, and gets what is kept of this one. lost says that the
// request can be sent again: a kept connection was just being closed, or the laptop is lost and has not taken it, or may be asked twice.
func (e *exchange) with(up *link, request *http1.Head, body *kept, copies []io.Writer) (goesOn, lost bool, err error) {
	kept := up.used
	up.used = true
	up.to, e.client.to = e.client, up
	var to io.Writer = up.w
	var question *mux.Delivery
	var keeps *keepingWriter
	if stream := laptop.StreamOf(up.Conn); stream != nil {
		question = stream.Track(func() { _ = stream.Abort() })
		if request.Framing != http1.NoBody && !body.whole {
			keeps = &keepingWriter{kept: body, to: up.w}
			to = keeps
		}
	}
	up.keeps = keeps != nil
	if len(copies) > 0 {
		to = io.MultiWriter(append([]io.Writer{to}, copies...)...)
	}
	sending := &e.sending
	sending.sent = nil
	defer e.unwatch()
	if request.Framing == http1.NoBody {
		e.send(up, request, to, keeps, body)
	} else {
		sending.sent = make(chan struct{})
		sending.Go(func() { e.send(up, request, to, keeps, body) })
	}
	answered := false
	for {
		answer, err := http1.ReadResponse(up.r, request.Method)
		if question != nil && !answered && (!question.Done() || repeatable(request.Method, err) && len(answer.Raw) == 0) {
			return false, e.takeBack(up, request, body), laptop.ErrUnreachable
		}
		if err != nil {
			replay := kept && !answered && request.Framing == http1.NoBody && len(answer.Raw) == 0
			if !replay && errors.Is(err, http1.ErrUnclear) {
				// Not HTTP/1 after all: the rest is passed on as it is.
				_, err = e.client.w.Write(answer.Raw)
				if err == nil {
					err = e.tunnel(up)
				}
				return false, false, err
			}
			if !answered && len(answer.Raw) == 0 && errors.Is(err, io.EOF) && !replay {
				// The app ended without an answer, in order: so do we.
				_ = up.Close()
				_ = e.client.Close()
				sending.Wait()
				return false, false, nil
			}
			_ = up.Close()
			if !replay {
				netx.Abort(e.local)
			}
			sending.Wait()
			return false, replay, err
		}
		answered = true
		e.seen.answered(answer.Status)
		leaves := e.agent.podEnding.Load() && answer.Status >= 200 && !answer.Close && !request.Close
		if leaves || answer.Vague {
			answer.Raw = closing(answer.Raw)
		}
		if _, err := e.client.w.Write(answer.Raw); err != nil {
			return false, false, e.fail(up, err)
		}
		if answer.Status == 101 {
			e.seen.end()
			return false, false, e.tunnel(up)
		}
		if answer.Status < 200 {
			continue
		}
		if answer.Vague {
			return false, false, e.untilTheEnd(up)
		}
		err = http1.CopyBody(e.client.w, up.r, answer)
		if flushed := e.client.w.Flush(); err == nil {
			err = flushed
		}
		if errors.Is(err, http1.ErrUnclear) {
			return false, false, e.tunnel(up)
		}
		if err != nil {
			return false, false, e.fail(up, err)
		}
		if answer.Close {
			_ = up.Close() // a body that is still being sent has nobody left to read it
			_ = e.finish()
			sending.Wait()
			return false, false, nil
		}
		failed := sending.wait()
		if errors.Is(failed, http1.ErrUnclear) {
			return false, false, e.tunnel(up)
		}
		sending.Wait()
		if errors.Is(failed, io.ErrUnexpectedEOF) {
			failed = nil // the client sent half a body and no more, and has its answer: an end in order
			request.Close = true
		}
		return failed == nil && !request.Close && !leaves, false, failed
	}
}

// sending is the request that is sent while its answer may come already.
type sending struct {
	sync.WaitGroup
	sent   chan struct{} // closed when the request is, as far as can be told where it ends; nil where it has no body
	failed error
}

// wait waits until the request is sent.
func (s *sending) wait() error {
	if s.sent != nil {
		<-s.sent
	}
	return s.failed
}

// send sends a request to an upstream, and to where it passes through.
func (e *exchange) send(up *link, request *http1.Head, to io.Writer, keeps *keepingWriter, body *kept) {
	var err error
	if body.whole {
		_, err = to.Write(body.raw)
	} else if _, err = to.Write(request.Raw); err == nil {
		err = http1.CopyBody(to, e.client.r, request)
	}
	if keeps != nil && err == nil {
		body.whole, err = !body.over, keeps.err
	}
	flushed := up.w.Flush()
	if err == nil {
		err = flushed
	}
	e.sending.failed = err
	if e.sending.sent != nil {
		close(e.sending.sent)
	}
	switch {
	case err == nil:
		e.watch(up)
	case errors.Is(err, http1.ErrUnclear):
		e.onward(up) // who is less strict than we are waits for the rest
	case flushed == nil:
		hangUp(up.Conn, errors.Is(err, io.ErrUnexpectedEOF)) // half a body cannot be taken for a whole one
	}
}

// closing is the head of an answer that says that its connection ends with it. The line comes first, because some clients look at one only.
func closing(head []byte) []byte {
	line := bytes.Index(head, []byte("\r\n")) + 2
	return slices.Concat(head[:line], []byte("Connection: close\r\n"), head[line:])
}

// fail ends both sides, so that the sender ends too.
func (e *exchange) fail(up *link, err error) error {
	_ = up.Close()
	netx.Abort(e.local)
	e.sending.Wait()
	return err
}

// finish ends the connection to the client in order: with unread bytes of its body, closing would be a reset that takes the answer with it.
func (e *exchange) finish() error {
	netx.CloseWrite(e.client.Conn)
	return e.client.SetReadDeadline(time.Now().Add(lingering))
}

// tunnel joins the two sides for the rest of the connection.
func (e *exchange) tunnel(up *link) error {
	var both sync.WaitGroup
	both.Go(func() {
		e.sending.Wait()
		e.unwatch()
		e.onward(up)
	})
	err := http1.CopyRaw(e.client.w, up.r)
	if flushed := e.client.w.Flush(); err == nil {
		err = flushed
	}
	if err != nil {
		netx.Abort(e.local)
	} else {
		netx.CloseWrite(e.client.Conn)
	}
	both.Wait()
	return err
}

// untilTheEnd passes on an answer of which nobody can say for sure where it ends. Its client was told that it is the connection's last, and ends it there; what it
// says all the same is not for this upstream, because nobody has looked whose it is.
func (e *exchange) untilTheEnd(up *link) error {
	var both sync.WaitGroup
	var over atomic.Bool
	both.Go(func() {
		e.sending.Wait()
		e.unwatch()
		if !over.Load() {
			_, err := e.client.r.Peek(1)
			hangUp(up.Conn, err == nil || errors.Is(err, io.EOF))
		}
	})
	err := http1.CopyRaw(e.client.w, up.r)
	if flushed := e.client.w.Flush(); err == nil {
		err = flushed
	}
	_ = up.Close()
	if err != nil {
		netx.Abort(e.local)
	}
	over.Store(true)
	_ = e.finish()
	both.Wait()
	return err
}

// onward passes on what else the client says.
func (e *exchange) onward(up *link) {
	err := http1.CopyRaw(up.w, e.client.r)
	if flushed := up.w.Flush(); err == nil {
		err = flushed
	}
	hangUp(up.Conn, err == nil)
}

// hangUp lets an upstream see how its client ended.
func hangUp(up net.Conn, inOrder bool) {
	if inOrder {
		netx.CloseWrite(up)
	} else {
		netx.Abort(up)
	}
}

// raw gives the app what was read and the rest of the connection.
func (e *exchange) raw(ctx context.Context, first []byte) {
	seen := e.agent.see(e.port, "", "")
	defer seen.end()
	want := e.agent.wanted(e.port)
	up, got, err := e.upstream(ctx, want)
	if err != nil {
		netx.Abort(e.local)
		return
	}
	seen.went(want, got)
	up.to, e.client.to = e.client, up
	if _, err := up.w.Write(first); err != nil {
		netx.Abort(e.local)
		return
	}
	_ = e.tunnel(up)
}

// upstream is the open connection to a route's laptop or to the app, or a new one; to the app when the laptop cannot be had.
func (e *exchange) upstream(ctx context.Context, want *target) (*link, *target, error) {
	if u := e.upstreams[want]; u != nil {
		u.wake()
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
	u := newLink(c, nil)
	u.forget = context.AfterFunc(ctx, func() { _ = c.Close() })
	if old := e.upstreams[got]; old != nil {
		_ = old.Close()
	}
	e.upstreams[got] = u
	return u, got, nil
}
