package agent

import (
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
)

// maxReplay bounds the bytes of a request, or of the beginning of a connection, that are kept until the laptop has acknowledged
// it. Of a longer one the app cannot get what the laptop did not take.
const maxReplay = 64 << 10

// replayBuffer keeps what was sent to a laptop, in case that the app has to get it instead.
type replayBuffer struct {
	raw     []byte
	whole   bool // raw is a whole request
	tooLong bool // there was more than maxReplay, and nothing is kept
}

func (r *replayBuffer) keep(b []byte) {
	if !r.tooLong {
		r.raw = append(r.raw, b...)
	}
	if len(r.raw) > maxReplay {
		r.tooLong, r.raw = true, nil
	}
}

// replayWriter passes a request on and keeps it. While it keeps all, it reads on although the laptop is lost.
type replayWriter struct {
	*replayBuffer
	to  io.Writer
	err error // of to
}

// Write implements io.Writer.
func (w *replayWriter) Write(b []byte) (int, error) {
	w.keep(b)
	if w.err == nil {
		_, w.err = w.to.Write(b)
	}
	if w.err != nil && w.tooLong {
		return 0, w.err
	}
	return len(b), nil
}

// retract ends the attempt to give a request to a laptop, and reports whether the app can get it instead.
func (e *exchange) retract(up *side, request *http1.Head, body *replayBuffer) bool {
	_ = up.Close()
	if request.Framing == http1.NoBody {
		return true
	}
	_ = e.client.SetReadDeadline(time.Now().Add(laptop.DialTimeout)) // for what is missing of the body
	e.sending.Wait()
	_ = e.client.SetReadDeadline(time.Time{})
	return body.whole
}

// repeatable reports whether the app may get a request although the laptop may have got it too: the relay connection was lost, and
// the method is idempotent (RFC 9110, 9.2.2).
func repeatable(method string, err error) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return errors.Is(err, mux.ErrConnLost)
	}
	return false
}

// opening is what a client said first on a raw connection to a laptop, until the laptop answers. rawConn.mu guards it.
type opening struct {
	replayBuffer
	up       *upstream
	delivery *mux.Delivery // nil if nothing has to be kept
}

// beginLocked keeps what the upstream is about to get, if it is a laptop that may not take it.
func (o *opening) beginLocked(up *upstream) {
	if s := laptop.StreamOf(up.Conn); s != nil {
		*o = opening{up: up, delivery: s.Track(func() { _ = s.Abort() })}
	}
}

func (o *opening) keepLocked(up *upstream, b []byte) {
	if o.delivery != nil && o.up == up {
		o.keep(b)
	}
}

// answeredLocked notes that the upstream answers. It returns false if it is too late, because the app gets what was kept.
func (o *opening) answeredLocked() bool {
	if o.delivery == nil {
		return true
	}
	if !o.delivery.Done() {
		return false
	}
	*o = opening{}
	return true
}

// lostLocked reports whether the upstream, which has ended, has not taken what was kept.
func (o *opening) lostLocked(up *upstream) bool {
	return o.up == up && o.delivery != nil && !o.delivery.Done()
}
