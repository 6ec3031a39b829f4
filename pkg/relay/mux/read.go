package mux

import (
	"errors"
	"os"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
)

const (
	readBuffer = 32 << 10
	// delegateFor is how long the goroutine leaves reading to a stream, at least.
	delegateFor = 20 * time.Millisecond
)

// Delegated reads.
//
// A goroutine reads the connection and gives each stream its bytes. But a stream that is alone on
// the connection reads it in its own Read while the goroutine waits.
//
// Gain: no wake-up of another goroutine for each message; waking the stream cost the agent a third
// more processor time for a request on one connection. Cost: the state machine below, and up to
// delegateFor in which nobody reads if the stream has stopped reading. Measured in the laboratory
// (docs/design/performance-log.md); BenchmarkRoundTrip compares both ways.
//
// Exactly one goroutine reads at a time: it has set reader.busy (acquireRead), and only it uses
// Conn.in, until it clears reader.busy (releaseRead).

// reader is the state of reading. Conn.mu guards it.
type reader struct {
	turn          sync.Cond // signalled when the goroutine may have to read
	busy          bool      // somebody reads
	delegated     bool      // a stream that is alone reads
	streamRead    bool      // a stream has read since the last check
	checking      bool      // a check of the delegation is due
	waiting       int       // goroutines that wait for others to read
	neverDelegate bool      // for the benchmark: the goroutine always reads itself
}

// input is the buffer of reading. It is only for the goroutine that reads.
type input struct {
	buf     []byte
	n       int // bytes of an incomplete frame at the beginning of buf
	parser  parser
	first   uint32 // the first stream that has received something of this read
	several bool   // other streams have, too
	before  bool   // several, of the read before
}

// readLoop reads until the connection ends, and returns why it ended.
func (c *Conn) readLoop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for c.err == nil && (c.r.busy || c.r.delegated && c.r.waiting == 0) {
			c.r.turn.Wait()
		}
		if c.err != nil {
			return c.err
		}
		c.r.busy = true
		c.mu.Unlock()
		err := c.readOnce()
		c.mu.Lock()
		c.r.busy = false
		if err != nil {
			return err
		}
		c.delegateReadLocked(c.aloneLocked())
	}
}

// delegateReadLocked leaves reading to the stream that is alone, or takes it back.
func (c *Conn) delegateReadLocked(delegated bool) {
	c.r.delegated = delegated && !c.r.neverDelegate
	if c.r.delegated && !c.r.checking {
		c.r.checking = true
		time.AfterFunc(delegateFor, c.checkDelegation)
	}
}

// readOnce reads once, and handles the frames that have arrived. The caller has acquired the read.
func (c *Conn) readOnce() error {
	in := &c.in
	if in.buf == nil {
		in.buf = make([]byte, readBuffer)
	}
	n, err := c.conn.Read(in.buf[in.n:])
	if err != nil {
		return err
	}
	in.first, in.several = 0, false
	rest, err := in.parser.parse(in.buf[:in.n+n], c)
	if err != nil {
		return err
	}
	in.n = copy(in.buf, rest)
	if in.several != in.before {
		in.before = in.several
		c.mu.Lock()
		c.w.yield = in.several
		c.mu.Unlock()
	}
	return nil
}

// noteReceiver records that a stream has received something of this read.
func (c *Conn) noteReceiver(s *Stream) {
	if c.in.first == 0 {
		c.in.first = s.id
	}
	c.in.several = c.in.several || c.in.first != s.id
}

// aloneLocked reports whether there is a single stream, which may read the connection itself.
func (c *Conn) aloneLocked() bool { return c.accept == nil && !c.w.yield && len(c.streams) == 1 }

// checkDelegation has the goroutine read again if no stream has read for a while.
func (c *Conn) checkDelegation() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.checking = false
	switch {
	case c.err != nil || !c.r.delegated || c.r.busy: // releaseRead delegates again
	case c.r.streamRead:
		c.r.streamRead = false
		c.delegateReadLocked(true)
	default:
		c.r.delegated = false
		c.r.turn.Signal()
	}
}

// acquireRead reports whether the calling stream may read. If so, the caller calls releaseRead
// afterwards; if not, others read, and the caller calls endReadWait when it has stopped waiting for
// them.
func (c *Conn) acquireRead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.acquireReadLocked() {
		c.beginReadWaitLocked()
		return false
	}
	return true
}

// acquireBufferedRead is acquireRead for a read that does not have to wait: it fails unless a whole
// record is buffered, and then there is nothing to end.
func (c *Conn) acquireBufferedRead() bool {
	below, ok := c.conn.(interface{ RecordReady() bool })
	c.mu.Lock()
	defer c.mu.Unlock()
	// RecordReady is for the goroutine that reads, so it comes after the check that nobody else
	// does.
	return ok && c.mayReadLocked() && below.RecordReady() && c.acquireReadLocked()
}

func (c *Conn) mayReadLocked() bool {
	return !c.r.busy && c.r.delegated && c.err == nil && c.aloneLocked()
}

func (c *Conn) acquireReadLocked() bool {
	if !c.mayReadLocked() {
		return false
	}
	c.r.busy = true
	return true
}

func (c *Conn) releaseRead() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.r.busy, c.r.streamRead = false, true
	c.delegateReadLocked(c.r.delegated && c.aloneLocked())
	if !c.r.delegated || c.r.waiting > 0 {
		c.r.turn.Signal()
	}
}

// beginReadWaitLocked notes that a goroutine waits for others to read.
func (c *Conn) beginReadWaitLocked() {
	c.r.waiting++
	c.r.turn.Signal()
}

func (c *Conn) endReadWait() {
	c.mu.Lock()
	c.r.waiting--
	c.mu.Unlock()
}

// readAvailable reads what has already arrived, if reading is delegated to a stream.
func (c *Conn) readAvailable() {
	c.mu.Lock()
	if c.r.busy || !c.r.delegated || c.err != nil {
		c.mu.Unlock()
		return
	}
	c.r.busy = true
	c.mu.Unlock()
	var err error
	for err == nil {
		limit := time.Unix(1, 0) // only bytes that TLS has buffered
		if netx.Readable(c.conn) {
			limit = time.Now().Add(time.Millisecond) // the rest of an incomplete record
		}
		_ = c.conn.SetReadDeadline(limit)
		err = c.readOnce()
	}
	_ = c.conn.SetReadDeadline(time.Time{})
	c.releaseRead()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.fail(err)
	}
}
