package exchange

import (
	"net"
	"sync"
	"sync/atomic"
)

const (
	// With the header of a frame (pkg/relay/mux), a full small buffer is one record of TLS.
	smallBuffer = 16<<10 - 8
	// largeBuffer is what is written at once in bulk: as much as the kernel sends as one packet
	// through the node's network. At most maxLargeBuffers are in use at a time. Who gets none
	// writes less at once.
	largeBuffer     = 64 << 10
	maxLargeBuffers = 32
)

var (
	smallBuffers     = sync.Pool{New: func() any { b := make([]byte, smallBuffer); return &b }}
	largeBuffers     = sync.Pool{New: func() any { b := make([]byte, largeBuffer); return &b }}
	largeBuffersUsed atomic.Int32
)

// pooledWriter is a bufio.Writer that has a buffer only while something waits in it, and takes a
// large one when the small one is full, until it is flushed.
//
// Gain: idle connections hold no buffer, and a bulk transfer needs a quarter of the writes. Cost:
// two pools, and one copy when a buffer grows. Measured: BenchmarkPooledWriter against bufio.Writer
// (docs/design/performance-log.md).
type pooledWriter struct {
	to    net.Conn
	small *[]byte
	large *[]byte
	n     int // bytes that wait
	err   error
}

// Write implements io.Writer.
func (w *pooledWriter) Write(b []byte) (int, error) {
	written := 0
	for w.err == nil && len(b) > 0 {
		buf := w.buffer()
		if w.n == len(buf) {
			if buf = w.grow(); w.n == len(buf) {
				_ = w.Flush()
				continue
			}
		}
		k := copy(buf[w.n:], b)
		w.n += k
		written += k
		b = b[k:]
	}
	return written, w.err
}

// Buffered returns how many bytes wait.
func (w *pooledWriter) Buffered() int { return w.n }

func (w *pooledWriter) buffer() []byte {
	if w.large != nil {
		return *w.large
	}
	if w.small == nil {
		w.small = smallBuffers.Get().(*[]byte)
	}
	return *w.small
}

// grow takes a large buffer if one is free.
func (w *pooledWriter) grow() []byte {
	if w.large == nil {
		if largeBuffersUsed.Add(1) > maxLargeBuffers {
			largeBuffersUsed.Add(-1)
			return *w.small
		}
		w.large = largeBuffers.Get().(*[]byte)
		copy(*w.large, (*w.small)[:w.n])
	}
	return *w.large
}

// Flush writes what waits and gives the buffers back.
func (w *pooledWriter) Flush() error {
	if w.n > 0 && w.err == nil {
		_, w.err = w.to.Write(w.buffer()[:w.n])
		w.n = 0
	}
	if w.large != nil {
		largeBuffers.Put(w.large)
		w.large = nil
		largeBuffersUsed.Add(-1)
	}
	if w.small != nil {
		smallBuffers.Put(w.small)
		w.small = nil
	}
	return w.err
}
