package exchange

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"
)

// watchDelay is how long an answer may take before its client is watched.
const watchDelay = time.Second

// clientWatch looks whether the client of an exchange is still there when an answer takes long, so
// that an upstream with a silent stream learns of the client's end. It reads the client while
// nothing else does.
//
// One timer lives as long as the exchange: to stop and set it for each request costs more than to
// let it fire in vain.
type clientWatch struct {
	// mu guards the fields below.
	mu     sync.Mutex
	timer  *time.Timer
	armed  bool
	client *side
	up     *side // who answers; nil if nothing is awaited
	since  time.Time
	done   chan struct{} // closed when look ends; nil while it does not run
}

// start begins to wait for an answer of up.
func (w *clientWatch) start(client, up *side) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.client, w.up, w.since = client, up, time.Now()
	switch {
	case w.armed:
		return
	case w.timer == nil:
		w.timer = time.AfterFunc(watchDelay, w.look)
	default:
		w.timer.Reset(watchDelay)
	}
	w.armed = true
}

// look waits for the end of the client if the answer takes long, and passes the end on.
func (w *clientWatch) look() {
	w.mu.Lock()
	client, up := w.client, w.up
	if remaining := watchDelay - time.Since(w.since); up != nil && remaining > 0 {
		w.timer.Reset(remaining)
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
	if _, err := client.r.Peek(1); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		hangUp(up.Conn, errors.Is(err, io.EOF))
	}
}

// stop ends what start began: the client may be read again.
func (w *clientWatch) stop() {
	w.mu.Lock()
	client, done := w.client, w.done
	w.up, w.done = nil, nil
	w.mu.Unlock()
	if done == nil {
		return
	}
	_ = client.SetReadDeadline(time.Unix(1, 0))
	<-done
	_ = client.SetReadDeadline(time.Time{})
}

// end releases the timer.
func (w *clientWatch) end() {
	if w.timer != nil {
		w.timer.Stop()
	}
}
