package mux

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

var errReset = fmt.Errorf("the other end has cut the stream: %w", syscall.ECONNRESET)

// Stream is one of a Conn's. It is a net.Conn with half-closes and resets. Where both locks are needed mu is taken first.
type Stream struct {
	conn     *Conn
	id       uint32
	answered chan agentv1.RelayStatus // nil where it was accepted

	// What is sent; conn.mu guards it.
	room    sync.Cond
	credit  int  // how much may be sent
	ended   bool // nothing more is
	heard   bool // nor comes
	grown   int  // see window
	writeBy deadline

	// What is received.
	mu       sync.Mutex
	readable sync.Cond
	parts    parts  // what waits
	into     []byte // of a reader that waits
	got      int    // how much of it is filled
	fin      bool   // nothing more comes
	err      error  // it is cut
	readBy   deadline
	credits  credits
	leading  bool // the reader reads the connection itself
	woken    bool // it was told to stop that

	local    net.Conn // where an accepted one leads to, once it does
	draining bool     // a goroutine writes what waits to local
	deaf     bool     // local takes nothing any more
	drained  sync.WaitGroup

	asked, spoke atomic.Bool // the other end had the last word; this end has said something. See ActiveStreams
}

func newStream(c *Conn, id uint32) *Stream {
	s := &Stream{conn: c, id: id, credit: firstWindow, credits: credits{window: firstWindow, left: firstWindow}}
	s.room.L, s.readable.L = &c.mu, &s.mu
	s.writeBy.lock, s.writeBy.changed = &c.mu, s.wakeWriter
	s.readBy.lock, s.readBy.changed = &s.mu, s.wake
	return s
}

// Write implements net.Conn.
func (s *Stream) Write(b []byte) (n int, err error) {
	c := s.conn
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.err != nil:
			return n, c.err
		case s.ended:
			return n, fmt.Errorf("write to a stream that has ended: %w", net.ErrClosed)
		case len(b) == 0:
			c.flush()
			return n, nil
		case s.writeBy.over():
			return n, os.ErrDeadlineExceeded
		case len(c.queue) > queueLimit && !c.writing: // not at queueLimit: the few bytes that do not fit into four frames leave with them
			c.flush()
			continue
		case len(c.queue) > queueLimit:
			c.room.Wait()
			continue
		case s.credit == 0:
			s.await()
			continue
		}
		s.asked.Store(false)
		s.spoke.Store(true)
		k := min(len(b), s.credit, maxData)
		c.frame(s.id, data, b[:k])
		c.owes()
		s.credit -= k
		n += k
		b = b[k:]
	}
}

// await waits until more may be sent, or not any more; conn.mu is held, and released meanwhile.
func (s *Stream) await() {
	c := s.conn
	c.waits()
	c.flush()
	for s.credit == 0 && !s.ended && c.err == nil && !s.writeBy.over() {
		s.room.Wait()
	}
	c.waiting--
}

// grant lets more be sent.
func (s *Stream) grant(n uint32) error {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	if n == 0 || n > maxWindow || s.credit+int(n) > maxWindow {
		return fmt.Errorf("%w: a window of %d more", errFrame, n)
	}
	s.credit += int(n)
	s.room.Broadcast()
	return nil
}

// CloseWrite says that no more is sent.
func (s *Stream) CloseWrite() error {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.end()
	return nil
}

// end sends that no more is sent; conn.mu is held.
func (s *Stream) end() {
	if s.ended || s.conn.err != nil {
		return
	}
	s.conn.frame(s.id, fin, nil)
	s.conn.later()
	s.stop()
	s.settle()
}

// stop lets nothing more be sent; conn.mu is held.
func (s *Stream) stop() {
	s.ended = true
	s.writeBy.stop()
	s.wakeWriter()
}

// wakeWriter wakes who waits to send; conn.mu is held.
func (s *Stream) wakeWriter() {
	s.room.Broadcast()
	s.conn.room.Broadcast()
}

// settle forgets a stream that has ended both ways; conn.mu is held. An accepted one is forgotten when join is over.
func (s *Stream) settle() {
	if s.ended && s.heard && s.answered != nil {
		s.conn.remove(s)
	}
}

// Close implements net.Conn. What was not read, and what comes later, is answered with a reset.
func (s *Stream) Close() error {
	s.mu.Lock()
	unread := s.parts.len() > 0
	s.lose(net.ErrClosed)
	s.mu.Unlock()
	if unread {
		return s.Abort()
	}
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.end()
	s.conn.remove(s)
	return nil
}

// Abort cuts the stream.
func (s *Stream) Abort() error {
	c := s.conn
	c.mu.Lock()
	if c.streams[s.id] == s {
		c.frame(s.id, reset, nil)
		c.later()
		c.remove(s)
	}
	c.mu.Unlock()
	s.cut(net.ErrClosed)
	return nil
}

// cut ends the stream at this end.
func (s *Stream) cut(err error) {
	s.conn.mu.Lock()
	s.stop()
	s.conn.mu.Unlock()
	s.mu.Lock()
	if s.err == nil {
		s.err = err
	}
	local := s.local
	if local != nil || s.answered == nil {
		s.parts.drop()
	}
	s.readBy.stop()
	s.wake()
	s.mu.Unlock()
	if local != nil {
		netx.Abort(local)
	}
}

// lose drops what was not read; mu is held.
func (s *Stream) lose(err error) {
	s.parts.drop()
	if s.err == nil {
		s.err = err
	}
	s.readBy.stop()
	s.wake()
}

// receive takes data that has come.
func (s *Stream) receive(b []byte) error {
	s.conn.tells(s)
	s.asked.Store(true)
	s.mu.Lock()
	if s.fin || !s.credits.use(len(b)) {
		s.mu.Unlock()
		return fmt.Errorf("%w: data that was not allowed", errFrame)
	}
	var err error
	switch {
	case s.err != nil || s.deaf:
		b = nil
	case s.parts.len() > 0:
	case s.got < len(s.into):
		n := copy(s.into[s.got:], b)
		s.got += n
		b = b[n:]
		s.readable.Broadcast()
	case s.local != nil && !s.draining:
		b, err = s.pass(b)
	}
	if len(b) > 0 && err == nil {
		s.parts.add(b)
		s.readable.Broadcast()
		s.drain()
	}
	if err != nil {
		s.deafen()
	}
	s.mu.Unlock()
	return nil
}

// finished takes the end of what the other end sends.
func (s *Stream) finished() error {
	s.mu.Lock()
	if s.fin {
		s.mu.Unlock()
		return fmt.Errorf("%w: a second end", errFrame)
	}
	s.fin = true
	s.readable.Broadcast()
	if s.local != nil && !s.draining {
		netx.CloseWrite(s.local)
	}
	s.mu.Unlock()
	s.conn.mu.Lock()
	s.heard = true
	s.settle()
	s.conn.mu.Unlock()
	return nil
}

// Read implements net.Conn.
func (s *Stream) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.parts.len() == 0 {
		switch {
		case s.fin:
			return 0, io.EOF
		case s.err != nil:
			return 0, s.err
		case s.readBy.over():
			return 0, os.ErrDeadlineExceeded
		case s.into != nil: // somebody else waits
			s.readable.Wait()
			continue
		}
		s.into = b
		if s.leading = s.conn.lead(); s.leading {
			s.mu.Unlock()
			s.lead()
			s.mu.Lock()
		} else {
			s.readable.Wait()
			s.conn.waited()
		}
		s.into = nil
		if n := s.got; n > 0 {
			s.got = 0
			s.took(n)
			return n, nil
		}
	}
	n := s.parts.take(b)
	s.took(n)
	return n, nil
}

// ReadAvailable reads what can be had without waiting, if anything can.
func (s *Stream) ReadAvailable(b []byte) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parts.len() == 0 && s.into == nil && s.err == nil && !s.fin && s.conn.leadNow() {
		s.into, s.leading = b, true
		s.mu.Unlock()
		s.lead()
		s.mu.Lock()
		s.into = nil
		n, s.got = s.got, 0
	}
	n += s.parts.take(b[n:])
	if n > 0 {
		s.took(n)
	}
	return n
}

// lead reads the connection once.
func (s *Stream) lead() {
	err := s.conn.readOnce()
	s.mu.Lock()
	s.leading = false
	if s.woken {
		s.woken = false
		_ = s.conn.conn.SetReadDeadline(time.Time{})
	}
	s.mu.Unlock()
	s.conn.leads()
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // that was wake's
		s.conn.fail(err)
	}
}

// wake wakes who reads; mu is held.
func (s *Stream) wake() {
	if s.leading {
		s.woken = true
		_ = s.conn.conn.SetReadDeadline(time.Unix(1, 0))
	}
	s.readable.Broadcast()
}

// Alone says whether the stream is the only one on its connection.
func (s *Stream) Alone() bool {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return s.conn.alone()
}

// Idle says whether nothing has come that was not read, and whether the stream has ended instead.
func (s *Stream) Idle() (quiet, ended bool) {
	s.conn.catchUp()
	s.mu.Lock()
	defer s.mu.Unlock()
	empty := s.parts.len() == 0
	ended = empty && (s.fin || s.err != nil)
	return empty && !ended, ended
}

// LocalAddr implements net.Conn: it is the connection's.
func (s *Stream) LocalAddr() net.Addr { return s.conn.conn.LocalAddr() }

// RemoteAddr implements net.Conn: it is the connection's.
func (s *Stream) RemoteAddr() net.Addr { return s.conn.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.readBy.set(t)
	s.writeBy.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.readBy.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.writeBy.set(t)
	return nil
}
