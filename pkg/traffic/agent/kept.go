package agent

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
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
	_ = e.client.SetReadDeadline(time.Now().Add(laptop.DialTimeout)) // for what is missing of the body
	e.sending.Wait()
	_ = e.client.SetReadDeadline(time.Time{})
	return body.whole
}

// begun is what a client has said to a laptop and what the laptop may not have taken, on a connection that is not served request by request.
type begun struct {
	kept
	of       *upstream
	question *mux.Delivery // nil when there is none
}

// said notes what is about to be said to an upstream, which may begin with a question.
func (g *begun) said(up *upstream, b []byte, asks bool) {
	if asks {
		g.answered()
		*g = begun{of: up}
		if s := laptop.StreamOf(up.Conn); s != nil {
			g.question = s.Track(func() { _ = s.Abort() })
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
	if !g.question.Done() {
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
	return !g.question.Done() || again
}

// repeatable says whether a request that a lane was lost with may be given to the app, although the laptop may have it: it means the same twice (RFC 9110, 9.2.2).
func repeatable(method string, err error) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return errors.Is(err, mux.ErrConnLost)
	}
	return false
}
