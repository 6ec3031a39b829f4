package transport

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

const (
	// Anybody in the cluster can open a stream. authTimeout is how long a stream may take until a
	// message arrives that only a laptop can have made, and maxUnauthStreams is how many streams
	// may wait for that at a time.
	authTimeout      = 10 * time.Second
	maxUnauthStreams = 64
	// unauthChunk is how much one read of such a stream may take, in bytes, unless a longer message
	// has begun.
	unauthChunk = 4 << 10
)

// unauthStreams are the hub's streams without proof that a laptop is at the other end. The zero
// value has none.
type unauthStreams struct {
	timeout time.Duration // 0 is authTimeout

	// mu guards the fields below.
	mu  sync.Mutex
	all []*StreamWire // oldest first
}

// add ends the stream if no proof comes in time, and the oldest stream when there are too many. The
// caller calls gone when the stream has ended.
func (a *unauthStreams) add(s *StreamWire) (gone func()) {
	within := a.timeout
	if within == 0 {
		within = authTimeout
	}
	timer := time.AfterFunc(within, func() {
		if !s.authenticated.Load() {
			s.Close()
		}
	})
	var oldest *StreamWire
	a.mu.Lock()
	a.all = append(a.all, s)
	if len(a.all) > maxUnauthStreams {
		oldest = a.all[0]
		a.all = slices.Delete(a.all, 0, 1)
	}
	a.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
	return func() { timer.Stop(); a.remove(s) }
}

// authenticate notes that a laptop has sent a message on a stream.
func (a *unauthStreams) authenticate(s *StreamWire) {
	if s.authenticated.CompareAndSwap(false, true) {
		a.remove(s)
	}
}

func (a *unauthStreams) remove(s *StreamWire) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = slices.DeleteFunc(a.all, func(o *StreamWire) bool { return o == s })
}

// count is the number of streams without proof.
func (a *unauthStreams) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.all)
}

// chunk returns a buffer for the next read; rest is the beginning of an unfinished message.
func (s *StreamWire) chunk(rest []byte) *chunk {
	if s.authenticated.Load() {
		return newChunk(s.endpoint())
	}
	size := unauthChunk
	if len(rest) >= FrameHeader {
		size = max(size, FrameHeader+int(min(binary.BigEndian.Uint32(rest), MaxMessage)))
	}
	return &chunk{buf: make([]byte, size), from: s.endpoint()}
}
