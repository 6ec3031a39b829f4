package agent

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"time"

	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/mux"
)

// maxKept is how much of a request's body is kept until the laptop has answered, in bytes: with more the request cannot be given to the app instead.
const maxKept = 64 << 10

// kept is a request of HTTP/1 with a body that goes to a laptop, as far as it was read.
type kept struct {
	raw   []byte
	whole bool // raw is all of it
	over  bool // it was too much to keep
}

// keepingWriter passes a request on and keeps it. While it does, a laptop that is lost is no reason to read no more.
type keepingWriter struct {
	*kept
	to  io.Writer
	err error
}

// keep keeps b too, if it is not too much.
func (k *kept) keep(b []byte) {
	if !k.over {
		k.raw = append(k.raw, b...)
	}
	if len(k.raw) > maxKept {
		k.over, k.raw = true, nil
	}
}

func (k *keepingWriter) Write(b []byte) (int, error) {
	k.keep(b)
	if k.err == nil {
		_, k.err = k.to.Write(b)
	}
	if k.err != nil && k.over {
		return 0, k.err
	}
	return len(b), nil
}

// takeBack ends the attempt to give a request to a laptop, and says whether somebody else can get it.
func (e *exchange) takeBack(up *link, request *http1.Head, body *kept) bool {
	_ = up.Close()
	if request.Framing == http1.NoBody {
		return true
	}
	_ = e.client.SetReadDeadline(time.Now().Add(relayTimeout)) // for what is missing of the body
	e.sending.Wait()
	_ = e.client.SetReadDeadline(time.Time{})
	return body.whole
}

// begun is what a client has said to a laptop and what the laptop may not have taken, on a connection that is not served request by request.
type begun struct {
	kept
	of       *upstream
	question *mux.Question // nil when there is none
}

// said notes what is about to be said to an upstream, which may begin with a question.
func (g *begun) said(up *upstream, b []byte, asks bool) {
	if asks {
		g.answered()
		*g = begun{of: up}
		if s := laptopOf(up.Conn); s != nil {
			g.question = s.Ask(func() { _ = s.Abort() })
		}
	}
	if g.question != nil && g.of == up {
		g.keep(b)
	}
}

// answered notes that the upstream speaks. It says no when that will not do any more.
func (g *begun) answered() bool {
	if g.question == nil {
		return true
	}
	if !g.question.Answered() {
		return false
	}
	*g = begun{}
	return true
}

// lost says whether what was begun with an upstream, which has ended so, can be said to somebody else: the laptop has not taken it, or may be asked twice.
func (g *begun) lost(up *upstream, err error) bool {
	if g.of != up || g.question == nil {
		return false
	}
	method, _, _ := bytes.Cut(g.raw, []byte(" "))
	again := repeatable(string(method), err)
	return !g.question.Answered() || again
}

// repeatable says whether a request that a lane was lost with may be given to the app, although the laptop may have it: it means the same twice (RFC 9110, 9.2.2).
func repeatable(method string, err error) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return errors.Is(err, mux.ErrEnded)
	}
	return false
}

// laptopOf is the stream to a laptop below a connection; nil where there is none.
func laptopOf(c net.Conn) *mux.Stream {
	s, _ := bottom(c).(*mux.Stream)
	return s
}

// question notices whether the laptop took a request of HTTP/2, on whatever stream that went.
type question struct{ atomic.Pointer[mux.Question] }

// trace asks on the stream that a request takes.
func (q *question) trace(untaken func()) *httptrace.ClientTrace {
	return &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		s := laptopOf(got.Conn)
		if s == nil {
			return
		}
		if before := q.Swap(s.Ask(untaken)); before != nil {
			before.Answered()
		}
	}}
}

// answered says no when the laptop has not taken the request.
func (q *question) answered() bool {
	asked := q.Load()
	return asked == nil || asked.Answered()
}

// keptBody is the body of a request of HTTP/2 that goes to a laptop. What was read of it is kept until the laptop has answered, for the app to be asked instead. The
// laptop's transport may still be waiting for more of it then: that becomes the app's too.
type keptBody struct {
	io.ReadCloser
	mu      sync.Mutex
	changed sync.Cond
	kept    []byte
	over    bool // nothing is kept any more
	again   bool // the app gets it
	reading bool // the laptop's transport is
	err     error
}

func keepBody(r *http.Request) *keptBody {
	if r.Body == nil || r.Body == http.NoBody {
		return nil
	}
	k := &keptBody{ReadCloser: r.Body}
	k.changed.L = &k.mu
	return k
}

// Read is the laptop's.
func (k *keptBody) Read(b []byte) (int, error) {
	k.mu.Lock()
	if k.again {
		k.mu.Unlock()
		return 0, io.ErrClosedPipe
	}
	k.reading = true
	k.mu.Unlock()
	n, err := k.ReadCloser.Read(b)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.reading, k.err = false, err
	if !k.again && len(k.kept)+n > maxKept {
		k.drop()
	}
	if !k.over {
		k.kept = append(k.kept, b[:n]...)
	}
	k.changed.Broadcast()
	return n, err
}

// Close is the laptop's, and leaves the client's.
func (k *keptBody) Close() error { return nil }

func (k *keptBody) drop() { k.over, k.kept = true, nil }

// taken says that the laptop has taken it.
func (k *keptBody) taken() {
	if k != nil {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.drop()
	}
}

// forApp gives a request its body once more, from the beginning, or says that it cannot.
func (k *keptBody) forApp(r *http.Request) bool {
	if k == nil {
		return true
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.over {
		return false
	}
	k.again = true
	r.Body = &bodyAgain{k}
	return true
}

type bodyAgain struct{ *keptBody }

func (a *bodyAgain) Read(b []byte) (int, error) {
	a.mu.Lock()
	for len(a.kept) == 0 && a.reading {
		a.changed.Wait()
	}
	if len(a.kept) > 0 {
		n := copy(b, a.kept)
		a.kept = a.kept[n:]
		a.mu.Unlock()
		return n, nil
	}
	err := a.err
	a.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return a.ReadCloser.Read(b)
}

func (a *bodyAgain) Close() error { return a.ReadCloser.Close() }
