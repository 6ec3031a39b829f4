package agent

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// watchAfter is how long an answer may take before its client is watched.
const watchAfter = time.Second

// watch looks whether the client is still there when an answer takes long, so that an upstream with a silent stream hears of its
// end. Nothing is read of the client's meanwhile.
func (e *exchange) watch(up *link) {
	w := &e.watching
	w.mu.Lock()
	defer w.mu.Unlock()
	w.up, w.since = up, time.Now()
	switch {
	case w.armed:
		return
	case w.timer == nil:
		w.timer = time.AfterFunc(watchAfter, e.look)
	default:
		w.timer.Reset(watchAfter)
	}
	w.armed = true
}

// watching is what watch began. The timer goes on from one request to the next, because to set it costs more than to see in vain.
type watching struct {
	mu    sync.Mutex
	timer *time.Timer
	armed bool
	up    *link // who answers, or nil
	since time.Time
	done  chan struct{} // closed when the client is not looked at any more; nil when it is not
}

// look looks at the client if it waits long enough.
func (e *exchange) look() {
	w := &e.watching
	w.mu.Lock()
	up := w.up
	if left := watchAfter - time.Since(w.since); up != nil && left > 0 {
		w.timer.Reset(left)
		w.mu.Unlock()
		return
	}
	w.armed = false
	if up == nil {
		w.mu.Unlock()
		return
	}
	done := make(chan struct{})
	w.done = done
	w.mu.Unlock()
	defer close(done)
	if _, err := e.client.r.Peek(1); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		hangUp(up.Conn, errors.Is(err, io.EOF))
	}
}

// unwatch ends what watch began: the client may be read again.
func (e *exchange) unwatch() {
	w := &e.watching
	w.mu.Lock()
	done := w.done
	w.up, w.done = nil, nil
	w.mu.Unlock()
	if done == nil {
		return
	}
	_ = e.client.SetReadDeadline(time.Unix(1, 0))
	<-done
	_ = e.client.SetReadDeadline(time.Time{})
}
