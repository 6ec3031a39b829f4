package mux

import (
	"encoding/binary"
	"sync"
	"time"
)

const (
	// firstWindow is how much of a stream may be sent before any of it is taken, in bytes: streams that nobody takes cost so much memory each.
	firstWindow = 64 << 10
	// A window grows up to maxWindow while less than growBelow goes by between one half of it and the next, as long as all streams of a connection have not
	// grown by more than maxGrown: a long way needs it, and on a slow line a large window would be a long queue that the others wait in.
	maxWindow = 4 << 20
	maxGrown  = 4 << 20
	growBelow = 60 * time.Millisecond
)

// credits are what the other end may send.
type credits struct {
	window int // how much in all may be under way
	left   int // how much more may come
	taken  int // how much was taken and may not come again yet
	since  time.Time
}

// use says whether n bytes may come.
func (c *credits) use(n int) bool {
	c.left -= n
	return c.left >= 0
}

// took lets more come when enough was taken; mu is held.
func (s *Stream) took(n int) {
	c := &s.credits
	c.taken += n
	if c.taken < c.window/2 || s.fin || s.err != nil {
		return
	}
	now := time.Now()
	if now.Sub(c.since) < growBelow && s.parts.len() == 0 {
		grow := s.conn.grow(s, min(c.window, maxWindow-c.window))
		c.window += grow
		c.taken += grow
	}
	c.since = now
	c.left += c.taken
	more := uint32(c.taken)
	c.taken = 0
	_ = s.conn.say(s.id, window, binary.BigEndian.AppendUint32(nil, more))
}

// grow says by how much of n the window of a stream may grow.
func (c *Conn) grow(s *Stream, n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.streams[s.id] != s || c.grown+n > maxGrown {
		return 0
	}
	c.grown += n
	s.grown += n
	return n
}

const partSize = 16 << 10

var partPool = sync.Pool{New: func() any { return new([partSize]byte) }}

// parts are bytes that wait.
type parts struct{ all []part }

type part struct {
	b        *[partSize]byte
	from, to int
}

func (p *parts) len() int { return len(p.all) }

func (p *parts) add(b []byte) {
	for len(b) > 0 {
		last := len(p.all) - 1
		if last < 0 || p.all[last].to == partSize {
			p.all = append(p.all, part{b: partPool.Get().(*[partSize]byte)})
			last++
		}
		n := copy(p.all[last].b[p.all[last].to:], b)
		p.all[last].to += n
		b = b[n:]
	}
}

// take moves bytes to b.
func (p *parts) take(b []byte) (n int) {
	for n < len(b) && len(p.all) > 0 {
		first := &p.all[0]
		k := copy(b[n:], first.b[first.from:first.to])
		n += k
		first.from += k
		if first.from == first.to {
			partPool.Put(p.pop().b)
		}
	}
	return n
}

func (p *parts) pop() part {
	first := p.all[0]
	p.all[0] = part{}
	p.all = p.all[1:]
	if len(p.all) == 0 {
		p.all = nil
	}
	return first
}

func (p *parts) drop() {
	for len(p.all) > 0 {
		partPool.Put(p.pop().b)
	}
}
