package agent

import (
	"net"
	"sync"
	"sync/atomic"
)

const (
	// outletBuffer is what is written at once in bulk: as much as the kernel sends as one packet through the node's network. There are so many such
	// buffers at a time; who gets none writes less at once.
	outletBuffer = 64 << 10
	outletLimit  = 32
)

var (
	smallBuffers  = sync.Pool{New: func() any { b := make([]byte, exchangeBuffer); return &b }}
	outletBuffers = sync.Pool{New: func() any { b := make([]byte, outletBuffer); return &b }}
	outletsUsed   atomic.Int32
)

// outlet is a bufio.Writer that has a buffer while something waits, and takes a large one where the usual one is full, until it is flushed.
type outlet struct {
	to    net.Conn
	small *[]byte
	large *[]byte
	n     int // what has gathered
	err   error
}

// Write implements io.Writer.
func (o *outlet) Write(b []byte) (int, error) {
	written := 0
	for o.err == nil && len(b) > 0 {
		buf := o.buffer()
		if o.n == len(buf) {
			if buf = o.grow(); o.n == len(buf) {
				_ = o.Flush()
				continue
			}
		}
		k := copy(buf[o.n:], b)
		o.n += k
		written += k
		b = b[k:]
	}
	return written, o.err
}

func (o *outlet) buffer() []byte {
	if o.large != nil {
		return *o.large
	}
	if o.small == nil {
		o.small = smallBuffers.Get().(*[]byte)
	}
	return *o.small
}

// grow takes a large buffer if there is one.
func (o *outlet) grow() []byte {
	if o.large == nil {
		if outletsUsed.Add(1) > outletLimit {
			outletsUsed.Add(-1)
			return *o.small
		}
		o.large = outletBuffers.Get().(*[]byte)
		copy(*o.large, (*o.small)[:o.n])
	}
	return *o.large
}

// Flush writes what has gathered.
func (o *outlet) Flush() error {
	if o.n > 0 && o.err == nil {
		_, o.err = o.to.Write(o.buffer()[:o.n])
		o.n = 0
	}
	if o.large != nil {
		outletBuffers.Put(o.large)
		o.large = nil
		outletsUsed.Add(-1)
	}
	if o.small != nil {
		smallBuffers.Put(o.small)
		o.small = nil
	}
	return o.err
}
