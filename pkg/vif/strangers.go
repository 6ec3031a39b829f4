package vif

import (
	"encoding/binary"
	"slices"
	"sync"
	"time"
)

const (
	// proveWithin is how long a stream may take until something comes on it that only a laptop can have made, and maxStrangers how many may
	// be about it at a time: anybody in the cluster can open streams.
	proveWithin  = 10 * time.Second
	maxStrangers = 64
	// strangerChunk is how much one read of such a stream may take, unless a longer message has begun.
	strangerChunk = 4 << 10
)

// strangers are the hub's streams of which it is not known yet whether a laptop is at the other end. The zero value has none.
type strangers struct {
	within time.Duration // 0 is proveWithin

	mu  sync.Mutex
	all []*stream // the oldest first
}

// add ends the stream if it is not proven in time, or the oldest when there are too many. gone is to be called when it has ended.
func (a *strangers) add(s *stream) (gone func()) {
	within := a.within
	if within == 0 {
		within = proveWithin
	}
	timer := time.AfterFunc(within, func() {
		if !s.proven.Load() {
			s.close()
		}
	})
	var oldest *stream
	a.mu.Lock()
	a.all = append(a.all, s)
	if len(a.all) > maxStrangers {
		oldest = a.all[0]
		a.all = slices.Delete(a.all, 0, 1)
	}
	a.mu.Unlock()
	if oldest != nil {
		oldest.close()
	}
	return func() { timer.Stop(); a.remove(s) }
}

// prove is told that a laptop has sent something on a stream.
func (a *strangers) prove(s *stream) {
	if s.proven.CompareAndSwap(false, true) {
		a.remove(s)
	}
}

func (a *strangers) remove(s *stream) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = slices.DeleteFunc(a.all, func(o *stream) bool { return o == s })
}

// chunk is for the next read; rest is the message that has begun.
func (s *stream) chunk(rest []byte) *chunk {
	if s.proven.Load() {
		return newChunk(s.endpoint())
	}
	size := strangerChunk
	if len(rest) >= frameHeader {
		size = max(size, frameHeader+int(min(binary.BigEndian.Uint32(rest), maxMessage)))
	}
	return &chunk{buf: make([]byte, size), from: s.endpoint()}
}
