package exchange

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/replay"
)

// roundTrip is one attempt to have a request answered by an upstream.
type roundTrip struct {
	*Exchange
	up       *side
	request  *http1.Head
	body     *replay.Buffer
	reused   bool          // the upstream has served a request before
	delivery *mux.Delivery // tells whether a laptop has taken the request; nil for others
	answered bool          // a head has come
	closing  bool          // the answer asks the client to open another connection
}

// roundTrip sends a request to an upstream and passes its answers on. body is what an attempt
// before has kept, and gets what this one keeps.
//
// It reports whether the connection goes on, and whether the request is lost and can be sent again:
// a connection that was kept open was just being closed, or the laptop is lost and has not taken
// the request, or may get it twice.
func (e *Exchange) roundTrip(
	up *side, request *http1.Head, body *replay.Buffer, copies []io.Writer,
) (goesOn, lost bool, err error) {
	t := &roundTrip{Exchange: e, up: up, request: request, body: body, reused: up.used}
	up.used = true
	up.to, e.client.to = e.client, up
	defer e.watch.stop()
	t.send(copies)
	for {
		answer, err := http1.ReadResponse(up.r, request.Method)
		switch {
		case t.untaken(answer, err):
			return false, e.retract(up, request, body), laptop.ErrUnreachable
		case err != nil:
			lost, err = t.onNoAnswer(answer, err)
			return false, lost, err
		}
		t.answered = true
		if final, goesOn, err := t.relay(answer); final || err != nil {
			return goesOn, false, err
		}
	}
}

// send sends the request and its copies. A goroutine sends a request with a body; sending.Wait
// waits for it.
func (t *roundTrip) send(copies []io.Writer) {
	var to io.Writer = t.up.w
	var keep *replay.Writer
	if stream := laptop.StreamOf(t.up.Conn); stream != nil {
		t.delivery = stream.Track(func() { _ = stream.Abort() })
		if t.request.Framing != http1.NoBody && !t.body.Whole {
			keep = &replay.Writer{Buffer: t.body, To: t.up.w}
			to = keep
		}
	}
	t.up.readsOn = keep != nil
	if len(copies) > 0 {
		to = io.MultiWriter(append([]io.Writer{to}, copies...)...)
	}
	t.sending.sent = nil
	if t.request.Framing == http1.NoBody {
		t.write(to, keep)
		return
	}
	t.sending.sent = make(chan struct{})
	t.sending.Go(func() { t.write(to, keep) })
}

// sending is the request that is sent while its answer may come already.
type sending struct {
	sync.WaitGroup
	sent chan struct{} // closed when the request is sent, as far as its end is known; nil if it has no body
	err  error
}

// await waits until the request is sent.
func (s *sending) await() error {
	if s.sent != nil {
		<-s.sent
	}
	return s.err
}

// write sends the request to the upstream and wherever else it goes.
func (t *roundTrip) write(to io.Writer, keep *replay.Writer) {
	var err error
	if t.body.Whole {
		_, err = to.Write(t.body.Bytes)
	} else if _, err = to.Write(t.request.Raw); err == nil {
		err = http1.CopyBody(to, t.client.r, t.request)
	}
	if keep != nil && err == nil {
		t.body.Whole, err = !t.body.TooLong, keep.Err
	}
	flushed := t.up.w.Flush()
	if err == nil {
		err = flushed
	}
	t.sending.err = err
	if t.sending.sent != nil {
		close(t.sending.sent)
	}
	switch {
	case err == nil:
		t.watch.start(t.client, t.up)
	case errors.Is(err, http1.ErrUnclear):
		t.onward(t.up) // an upstream that is less strict than we are waits for the rest
	case flushed == nil:
		hangUp(t.up.Conn, errors.Is(err, io.ErrUnexpectedEOF)) // half a body must not look like a whole one
	}
}

// untaken reports whether a laptop has not taken the request, or is lost and may get it twice.
func (t *roundTrip) untaken(answer *http1.Head, err error) bool {
	if t.delivery == nil || t.answered {
		return false
	}
	return !t.delivery.Done() || replay.Repeatable(t.request.Method, err) && len(answer.Raw) == 0
}

// onNoAnswer ends the attempt after an error of the upstream.
func (t *roundTrip) onNoAnswer(answer *http1.Head, err error) (lost bool, _ error) {
	nothing := !t.answered && len(answer.Raw) == 0
	lost = t.reused && nothing && t.request.Framing == http1.NoBody
	switch {
	case lost:
		_ = t.up.Close()
	case errors.Is(err, http1.ErrUnclear):
		// Not HTTP/1 after all: the rest is passed on as it is.
		if _, err = t.client.w.Write(answer.Raw); err == nil {
			err = t.tunnel(t.up)
		}
		return false, err
	case nothing && errors.Is(err, io.EOF):
		// The app ended in order without an answer: so do we.
		_ = t.up.Close()
		_ = t.client.Close()
		err = nil
	default:
		_ = t.up.Close()
		netx.Abort(t.local)
	}
	t.sending.Wait()
	return lost, err
}

// relay passes an answer on. final reports whether it was the last one to the request, and goesOn
// whether another request may follow it.
func (t *roundTrip) relay(answer *http1.Head) (final, goesOn bool, err error) {
	t.current.report.SetStatus(answer.Status)
	t.closing = t.config.Host.PodEnding() && answer.Status >= 200 && !answer.Close && !t.request.Close
	if t.closing || answer.Vague {
		answer.Raw = addClose(answer.Raw)
	}
	if _, err := t.client.w.Write(answer.Raw); err != nil {
		return true, false, t.fail(err)
	}
	switch {
	case answer.Status == 101:
		t.current.report.End()
		return true, false, t.tunnel(t.up)
	case answer.Status < 200:
		return false, false, nil
	case answer.Vague:
		return true, false, t.relayUntilEnd(t.up)
	}
	err = http1.CopyBody(t.client.w, t.up.r, answer)
	if flushed := t.client.w.Flush(); err == nil {
		err = flushed
	}
	switch {
	case errors.Is(err, http1.ErrUnclear):
		return true, false, t.tunnel(t.up)
	case err != nil:
		return true, false, t.fail(err)
	}
	goesOn, err = t.finishAnswer(answer)
	return true, goesOn, err
}

// finishAnswer ends a round trip whose answer has passed. It reports whether another request may
// follow.
func (t *roundTrip) finishAnswer(answer *http1.Head) (goesOn bool, _ error) {
	if answer.Close {
		_ = t.up.Close() // nobody is left to read a body that is still being sent
		_ = t.finish()
		t.sending.Wait()
		return false, nil
	}
	err := t.sending.await()
	if errors.Is(err, http1.ErrUnclear) {
		return false, t.tunnel(t.up)
	}
	t.sending.Wait()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return false, nil // the client sent half a body and no more, and has its answer: an end in order
	}
	return err == nil && !t.request.Close && !t.closing, err
}

// fail ends both sides, so that the sending goroutine ends too.
func (t *roundTrip) fail(err error) error {
	_ = t.up.Close()
	netx.Abort(t.local)
	t.sending.Wait()
	return err
}

// retract ends the attempt to give a request to a laptop, and reports whether the app can get it
// instead.
func (e *Exchange) retract(up *side, request *http1.Head, body *replay.Buffer) bool {
	_ = up.Close()
	if request.Framing == http1.NoBody {
		return true
	}
	_ = e.client.SetReadDeadline(time.Now().Add(laptop.DialTimeout)) // for what is missing of the body
	e.sending.Wait()
	_ = e.client.SetReadDeadline(time.Time{})
	return body.Whole
}

// addClose returns the head of an answer with a line that ends the connection. The line comes
// first, because some clients look at the first Connection line only.
func addClose(head []byte) []byte {
	line := bytes.Index(head, []byte("\r\n")) + 2
	return slices.Concat(head[:line], []byte("Connection: close\r\n"), head[line:])
}

// hangUp shows an upstream how its client ended.
func hangUp(up net.Conn, inOrder bool) {
	if inOrder {
		netx.CloseWrite(up)
	} else {
		netx.Abort(up)
	}
}
