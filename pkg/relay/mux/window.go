package mux

import (
	"encoding/binary"
	"time"
)

const (
	// firstWindow is how many bytes a stream may send before any of them is consumed: a stream that
	// nobody reads costs that much memory.
	firstWindow = 64 << 10
	// A window grows up to maxWindow while its two halves are consumed within growWithin, unless
	// all streams of the connection together have grown by more than maxGrown. A long path needs a
	// large window, and on a slow line a large window would be a long queue that the other streams
	// wait in.
	maxWindow  = 4 << 20
	maxGrown   = 4 << 20
	growWithin = 60 * time.Millisecond
)

// receiveWindow limits what the peer may send on a stream. All sizes are in bytes.
type receiveWindow struct {
	size     int       // how much may be in flight or unread
	open     int       // how much more the peer may send
	consumed int       // how much was consumed that the peer may not send again yet
	since    time.Time // of the last window frame
}

// use counts n received bytes, and reports whether the peer was allowed to send them.
func (w *receiveWindow) use(n int) bool {
	w.open -= n
	return w.open >= 0
}

// consumedLocked lets the peer send more once half of the window was consumed.
func (s *Stream) consumedLocked(n int) {
	w := &s.recv.window
	w.consumed += n
	if w.consumed < w.size/2 || s.recv.fin || s.recv.err != nil {
		return
	}
	now := time.Now()
	if now.Sub(w.since) < growWithin && s.recv.queue.len() == 0 {
		grow := s.conn.growWindow(s, min(w.size, maxWindow-w.size))
		w.size += grow
		w.consumed += grow
	}
	w.since = now
	w.open += w.consumed
	more := uint32(w.consumed)
	w.consumed = 0
	_ = s.conn.sendControl(s.id, kindWindow, binary.BigEndian.AppendUint32(nil, more))
}

// growWindow returns n if the window of a stream may grow by n bytes, otherwise 0.
func (c *Conn) growWindow(s *Stream, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[s.id] != s || c.grown+n > maxGrown {
		return 0
	}
	c.grown += n
	s.send.grown += n
	return n
}
