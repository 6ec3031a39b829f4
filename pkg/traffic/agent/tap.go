package agent

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// tapLimit bounds what waits for a laptop that gets copies, in bytes for each of its connections. Beyond it the copy is dropped:
	// the original is never slowed.
	tapLimit = 256 << 10
	// tapStall is how long the laptop may take nothing of what waits.
	tapStall = 3 * time.Second
)

// errTapDropped ends a copy that its laptop did not take fast enough.
var errTapDropped = errors.New("the laptop does not take its copies fast enough")

// tapBuffer is a pipe whose writer never waits. It counts the requests whose copies are lost in it.
type tapBuffer struct {
	lost    func(uint64)
	mu      sync.Mutex
	changed sync.Cond
	waiting bytes.Buffer
	err     error  // what the reader gets after what waits
	unread  uint64 // requests that were begun and not yet wholly read
	open    bool   // the last of them is still being written
	dropped bool   // nothing more reaches the laptop
}

func (a *agent) newTapBuffer(t *target) *tapBuffer {
	b := &tapBuffer{lost: func(n uint64) { a.report.drop(t, n) }}
	b.changed.L = &b.mu
	return b
}

// begin says that a request follows.
func (b *tapBuffer) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.unread++
	b.open = true
}

// complete says that the request is written.
func (b *tapBuffer) complete() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open = false
	b.settle()
}

// settle counts what is read, or what never will be.
func (b *tapBuffer) settle() {
	if b.dropped {
		b.lost(b.unread)
		b.unread = 0
		return
	}
	if b.waiting.Len() == 0 {
		b.unread = 0
		if b.open {
			b.unread = 1
		}
	}
}

// drop gives up what was not taken.
func (b *tapBuffer) drop(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.giveUp(err)
	b.changed.Broadcast()
}

func (b *tapBuffer) giveUp(err error) {
	if b.err == nil {
		b.err = err
	}
	b.dropped = true
	b.waiting.Reset()
	b.settle()
}

// Write takes all or nothing: after too much nothing more is copied.
func (b *tapBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil && b.waiting.Len()+len(p) > tapLimit {
		b.giveUp(errTapDropped)
	}
	if b.err == nil {
		b.waiting.Write(p)
	}
	b.changed.Broadcast()
	return len(p), nil
}

func (b *tapBuffer) finish(err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err == nil {
		b.err = err
	}
	b.changed.Broadcast()
}

func (b *tapBuffer) end() { b.finish(io.EOF) }

// broken says whether nothing more can be copied.
func (b *tapBuffer) broken() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err != nil
}

func (b *tapBuffer) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for b.waiting.Len() == 0 {
		if b.err != nil {
			return 0, b.err
		}
		b.changed.Wait()
	}
	n, err := b.waiting.Read(p)
	b.settle()
	return n, err
}

// tap is the connection of an exchange to a laptop that gets copies. Requests follow one another as the client sent them; what the
// laptop answers is dropped.
type tap struct{ *tapBuffer }

// newTap dials in the background: the original does not wait.
func (a *agent) newTap(ctx context.Context, t *target, client net.Conn) *tap {
	b := a.newTapBuffer(t)
	a.conns.Go(func() {
		c, err := a.dialLaptop(ctx, t, client)
		if err != nil {
			b.drop(err)
			a.log.Debug("a copy was dropped", "intercept", t.Uid, "err", err)
			return
		}
		defer c.Close()
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		defer stop()
		a.conns.Go(func() { _, _ = io.Copy(io.Discard, c); b.drop(io.ErrClosedPipe) })
		if _, err := io.Copy(&stalling{c}, struct{ io.Reader }{b}); err != nil {
			b.drop(err)
			a.log.Debug("a copy was dropped", "intercept", t.Uid, "err", err)
			return
		}
		closeWrite(c)
		_ = c.SetReadDeadline(time.Now().Add(lingering))
	})
	return &tap{b}
}

// stalling gives up a connection that takes nothing.
type stalling struct{ net.Conn }

func (s *stalling) Write(b []byte) (int, error) {
	_ = s.SetWriteDeadline(time.Now().Add(tapStall))
	return s.Conn.Write(b)
}
