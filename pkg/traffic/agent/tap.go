package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
)

const (
	// tapLimit bounds what waits for a laptop that gets copies, in bytes for each of its connections. Beyond it the copy is dropped:
	// the original is never slowed.
	tapLimit = 256 << 10
	// tapsLimit bounds what waits for all of them together: the app's pod pays for it.
	tapsLimit = 4 << 20
	// tapStall is how long the laptop may take nothing of what waits, tapPiece what it is given at once.
	tapStall = 3 * time.Second
	tapPiece = 32 << 10
	// tapKept is the largest buffer that is kept for what comes next, in bytes.
	tapKept = 4 << 10
)

// errTapDropped ends a copy that its laptop did not take fast enough.
var errTapDropped = errors.New("the laptop does not take its copies fast enough")

// budget bounds something that many have a share of.
type budget struct {
	limit int64
	used  atomic.Int64
}

// take takes n of what is left, or nothing when that is too little.
func (b *budget) take(n int) bool {
	if b.used.Add(int64(n)) > b.limit {
		b.give(n)
		return false
	}
	return true
}

func (b *budget) give(n int) { b.used.Add(-int64(n)) }

// tapBuffer is a pipe whose writer never waits. It counts the requests whose copies are lost in it.
type tapBuffer struct {
	lost    func(uint64)
	budget  *budget
	mu      sync.Mutex
	changed sync.Cond
	waiting []byte
	writing int    // bytes that the reader has and has not passed on yet
	err     error  // what the reader gets after what waits
	unread  uint64 // requests that were begun and not yet wholly passed on
	open    bool   // the last of them is still being written
	dropped bool   // nothing more reaches the laptop
}

func (a *agent) newTapBuffer(t *target) *tapBuffer {
	b := &tapBuffer{budget: &a.copies, lost: func(n uint64) { a.report.drop(t, n) }}
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

// settle forgets the requests that were passed on as a whole. The last one is if nothing more of it is written.
func (b *tapBuffer) settle() {
	switch {
	case len(b.waiting)+b.writing > 0:
	case b.open:
		b.unread = min(b.unread, 1)
	default:
		b.unread = 0
	}
}

// miss counts what will never be passed on.
func (b *tapBuffer) miss() {
	b.lost(b.unread)
	b.unread = 0
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
	if given := len(b.waiting); given > 0 {
		b.budget.give(given)
		b.waiting = nil
		b.miss()
	}
	b.settle()
}

// Write takes all or nothing: after too much nothing more is copied.
func (b *tapBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case b.dropped:
		b.miss()
	case b.err != nil:
	case b.writing+len(b.waiting)+len(p) > tapLimit || !b.budget.take(len(p)):
		b.giveUp(errTapDropped)
		b.miss()
	default:
		b.waiting = append(b.waiting, p...)
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

// next waits for something, and hands over all that there is.
func (b *tapBuffer) next() ([]byte, error) {
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

// passed says that what next handed over was passed on as a whole, or never will be.
func (b *tapBuffer) passed(p []byte, whole bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.budget.give(len(p))
	b.writing = 0
	if !whole {
		b.miss()
	}
	if b.waiting == nil && cap(p) <= tapKept {
		b.waiting = p[:0]
	}
	b.settle()
}

// passTo passes everything on.
func (b *tapBuffer) passTo(c net.Conn) error {
	for {
		p, err := b.next()
		if err != nil {
			return err
		}
		for rest := p; len(rest) > 0 && err == nil; rest = rest[min(tapPiece, len(rest)):] {
			_ = c.SetWriteDeadline(time.Now().Add(tapStall))
			_, err = c.Write(rest[:min(tapPiece, len(rest))])
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
		if err := b.passTo(c); !errors.Is(err, io.EOF) {
			a.log.Debug("a copy was dropped", "intercept", t.Uid, "err", err)
			return
		}
		netx.CloseWrite(c)
		_ = c.SetReadDeadline(time.Now().Add(lingerTimeout))
	})
	return &tap{b}
}
