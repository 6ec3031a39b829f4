// Package copies carries copies of requests to the laptops of wiretaps. A copy never slows or
// changes the original: what a laptop does not take fast enough is dropped and counted.
//
// Start with Stream, the connection of one client to one such laptop.
package copies

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/traffic/agent/budget"
)

const (
	// MaxBuffered bounds what waits for one connection of a laptop, in bytes, and MaxTotal what
	// waits for all of them together.
	MaxBuffered = 256 << 10
	MaxTotal    = 4 << 20
	// writeTimeout is how long the laptop may take none of what waits, and pieceSize what is
	// written at once.
	writeTimeout = 3 * time.Second
	pieceSize    = 32 << 10
	// maxSpare is the largest empty buffer that is kept for the next copy, in bytes.
	maxSpare = 4 << 10
)

// errTooSlow ends a copy that its laptop does not take fast enough.
var errTooSlow = errors.New("the laptop does not take its copies fast enough")

// buffer is a pipe whose writer never waits. It counts the requests whose copies are lost in it.
type buffer struct {
	onLost func(n uint64)
	budget *budget.Budget

	// mu guards the fields below.
	mu      sync.Mutex
	changed sync.Cond
	waiting []byte
	writing int    // bytes that the reader has and has not passed on yet
	err     error  // what the reader gets after what waits
	pending uint64 // requests that began and were not passed on as a whole yet
	open    bool   // the last of them is still being written
	dropped bool   // nothing more reaches the laptop
}

func newBuffer(b *budget.Budget, onLost func(n uint64)) *buffer {
	t := &buffer{budget: b, onLost: onLost}
	t.changed.L = &t.mu
	return t
}

// Begin notes that a request follows.
func (b *buffer) Begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.pending++
	b.open = true
}

// Complete notes that the request is written.
func (b *buffer) Complete() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = false
	b.settleLocked()
}

// settleLocked forgets the requests that were passed on as a whole. A request that is open counts
// as passed on if nothing more of it is written.
func (b *buffer) settleLocked() {
	switch {
	case len(b.waiting)+b.writing > 0:
	case b.open:
		b.pending = min(b.pending, 1)
	default:
		b.pending = 0
	}
}

// countLostLocked counts what will never be passed on.
func (b *buffer) countLostLocked() {
	b.onLost(b.pending)
	b.pending = 0
}

// drop gives up what was not taken.
func (b *buffer) drop(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropLocked(err)
	b.changed.Broadcast()
}

func (b *buffer) dropLocked(err error) {
	if b.err == nil {
		b.err = err
	}
	b.dropped = true
	if n := len(b.waiting); n > 0 {
		b.budget.Give(n)
		b.waiting = nil
		b.countLostLocked()
	}
	b.settleLocked()
}

// Write takes all of p or nothing. After it has taken nothing it takes nothing more. It never
// fails.
func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.dropped:
		b.countLostLocked()
	case b.err != nil:
	case b.writing+len(b.waiting)+len(p) > MaxBuffered || !b.budget.Take(len(p)):
		b.dropLocked(errTooSlow)
		b.countLostLocked()
	default:
		b.waiting = append(b.waiting, p...)
	}
	b.changed.Broadcast()
	return len(p), nil
}

// End ends the copies after what was written.
func (b *buffer) End() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = io.EOF
	}
	b.changed.Broadcast()
}

// Broken reports whether nothing more can be copied.
func (b *buffer) Broken() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err != nil
}

// next waits until something is written, and returns all that waits.
func (b *buffer) next() ([]byte, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.waiting) == 0 {
		if b.err != nil {
			return nil, b.err
		}
		b.changed.Wait()
	}
	p := b.waiting
	b.waiting, b.writing = nil, len(p)
	return p, nil
}

// passed notes that the result of next was passed on as a whole, or never will be.
func (b *buffer) passed(p []byte, whole bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.budget.Give(len(p))
	b.writing = 0
	if !whole {
		b.countLostLocked()
	}
	if b.waiting == nil && cap(p) <= maxSpare {
		b.waiting = p[:0]
	}
	b.settleLocked()
}

// passTo passes everything on. It returns io.EOF after End.
func (b *buffer) passTo(c net.Conn) error {
	for {
		p, err := b.next()
		if err != nil {
			return err
		}
		for rest := p; len(rest) > 0 && err == nil; rest = rest[min(pieceSize, len(rest)):] {
			_ = c.SetWriteDeadline(time.Now().Add(writeTimeout))
			_, err = c.Write(rest[:min(pieceSize, len(rest))])
		}
		if err != nil {
			b.drop(err)
		}
		b.passed(p, err == nil)
		if err != nil {
			return err
		}
	}
}
