package mux

import (
	"errors"
	"os"
	"sync"
	"time"
)

const (
	readBuffer = 32 << 10
	// leadFor is how long the goroutine leaves it to a stream to read, at least.
	leadFor = 20 * time.Millisecond
)

// reader is how a Conn reads; Conn.mu guards what is not only for who reads. A goroutine reads, and gives the streams what is theirs. But a stream that is alone and
// waits reads the connection itself, which saves waking it each time.
type reader struct {
	turn    sync.Cond // signalled when the goroutine may have to read
	reading bool      // somebody is
	left    bool      // it is left to a stream that is alone
	led     bool      // one has lately
	looking bool      // whether one has
	waiting int       // streams that wait for somebody to read

	// Only for who reads.
	buf    []byte
	have   int // of an unfinished frame
	parser parser
	first  uint32 // the stream that has got something of this read
	others bool   // so have others
	before bool   // others, in the read before
}

// read reads until the end.
func (c *Conn) read() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for c.err == nil && (c.reading || c.left && c.waiting == 0) {
			c.turn.Wait()
		}
		if c.err != nil {
			return c.err
		}
		c.reading = true
		c.mu.Unlock()
		err := c.readOnce()
		c.mu.Lock()
		c.reading = false
		if err != nil {
			return err
		}
		c.leave(c.alone())
	}
}

// leave leaves it to a stream that is alone to read, or not; c.mu is held.
func (c *Conn) leave(left bool) {
	c.left = left
	if left && !c.looking {
		c.looking = true
		time.AfterFunc(leadFor, c.look)
	}
}

// readOnce reads and takes apart what has come.
func (c *Conn) readOnce() error {
	if c.buf == nil {
		c.buf = make([]byte, readBuffer)
	}
	n, err := c.conn.Read(c.buf[c.have:])
	if err != nil {
		return err
	}
	c.first, c.others = 0, false
	rest, err := c.parser.parse(c.buf[:c.have+n], c)
	if err != nil {
		return err
	}
	c.have = copy(c.buf, rest)
	if c.others != c.before {
		c.before = c.others
		c.mu.Lock()
		c.together = c.others
		c.mu.Unlock()
	}
	return nil
}

// tells says that a stream gets something.
func (c *Conn) tells(s *Stream) {
	if c.first == 0 {
		c.first = s.id
	}
	c.others = c.others || c.first != s.id
}

// alone says whether there is a single stream, which may read itself; c.mu is held.
func (c *Conn) alone() bool { return c.accept == nil && !c.together && len(c.streams) == 1 }

// look has the goroutine read again when no stream has for a while.
func (c *Conn) look() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.looking = false
	switch {
	case c.err != nil || !c.left || c.reading: // who reads leaves it again
	case c.led:
		c.led = false
		c.leave(true)
	default:
		c.left = false
		c.turn.Signal()
	}
}

// lead lets a stream read, until leads is called. If it may not, it waits for others to read, until waited is called.
func (c *Conn) lead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reading || !c.left || c.err != nil || !c.alone() {
		c.waits()
		return false
	}
	c.reading = true
	return true
}

// leadNow is lead where reading does not have to wait.
func (c *Conn) leadNow() bool {
	below, ok := c.conn.(interface{ RecordReady() bool })
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok || c.reading || !c.left || c.err != nil || !c.alone() || !below.RecordReady() {
		return false
	}
	c.reading = true
	return true
}

func (c *Conn) leads() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading, c.led = false, true
	c.leave(c.left && c.alone())
	if !c.left || c.waiting > 0 {
		c.turn.Signal()
	}
}

// waits says that somebody waits for what others read; c.mu is held.
func (c *Conn) waits() {
	c.waiting++
	c.turn.Signal()
}

func (c *Conn) waited() {
	c.mu.Lock()
	c.waiting--
	c.mu.Unlock()
}

// catchUp reads what has come already, where that was left to a stream.
func (c *Conn) catchUp() {
	c.mu.Lock()
	if c.reading || !c.left || c.err != nil {
		c.mu.Unlock()
		return
	}
	c.reading = true
	c.mu.Unlock()
	var err error
	for err == nil {
		wait := time.Unix(1, 0) // only what TLS has read already
		if readable(c.conn) {
			wait = time.Now().Add(time.Millisecond) // for what is not a whole record
		}
		_ = c.conn.SetReadDeadline(wait)
		err = c.readOnce()
	}
	_ = c.conn.SetReadDeadline(time.Time{})
	c.leads()
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		c.fail(err)
	}
}
