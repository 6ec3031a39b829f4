package transport

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

const (
	// proveWithin is how long a stream may take until something comes on it that only a laptop can have made, and maxStrangers how many may
	// be about it at a time: anybody in the cluster can open streams.
	authTimeout      = 10 * time.Second
	maxUnauthStreams = 64
	// strangerChunk is how much one read of such a stream may take, unless a longer message has begun.
	unauthChunk = 4 << 10
)

// strangers are the hub's streams of which it is not known yet whether a laptop is at the other end. The zero value has none.
type unauthStreams struct {
	timeout time.Duration // 0 is proveWithin

	mu  sync.Mutex
	all []*StreamWire // the oldest first
}

// add ends the stream if it is not proven in time, or the oldest when there are too many. gone is to be called when it has ended.
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

// prove is told that a laptop has sent something on a stream.
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

// chunk is for the next read; rest is the message that has begun.
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
