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

var errReset = fmt.Errorf("the peer has cut the stream: %w", syscall.ECONNRESET)

// Stream is one stream of a Conn. It is a net.Conn with half-closes and resets.
//
// Two locks guard it: Conn.mu guards send, mu the parts below it. Lock mu before Conn.mu. A method
// of Conn whose name ends in Locked needs Conn.mu, one of Stream needs Stream.mu.
type Stream struct {
	conn     *Conn
	id       uint32
	answered chan agentv1.RelayStatus // nil for an accepted stream

	send sendSide // Conn.mu guards it

	// mu guards the fields below.
	mu    sync.Mutex
	recv  receiveSide
	local localSide

	owesAnswer atomic.Bool // the peer has sent something since this end did; see ActiveStreams
	sent       atomic.Bool // this end has sent something since the last call to ActiveStreams
}

// sendSide is what a stream sends.
type sendSide struct {
	ready    sync.Cond // signalled when more may be sent, or nothing any more
	credit   int       // how many more bytes may be sent
	closed   bool      // nothing more is sent
	peerDone bool      // nothing more is received: the stream is over when both are true
	grown    int       // by how many bytes this end has grown the peer's window
	deadline deadline
}

// receiveSide is what a stream has received.
type receiveSide struct {
	readable    sync.Cond
	queue       byteQueue // bytes that nobody has read
	into        []byte    // the buffer of a Read that waits
	filled      int       // bytes in it
	fin         bool      // nothing more is received
	err         error     // why the stream is cut
	deadline    deadline
	window      receiveWindow
	reads       bool // a Read of this stream reads the connection (see reader)
	interrupted bool // that Read was made to return by a read deadline on the connection
}

func newStream(c *Conn, id uint32) *Stream {
	s := &Stream{conn: c, id: id}
	s.send.credit = firstWindow
	s.send.ready.L = &c.mu
	s.send.deadline.lock, s.send.deadline.changed = &c.mu, func() { c.wakeSenderLocked(s) }
	s.recv.window = receiveWindow{size: firstWindow, open: firstWindow}
	s.recv.readable.L = &s.mu
	s.recv.deadline.lock, s.recv.deadline.changed = &s.mu, s.wakeReaderLocked
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
		case s.send.closed:
			return n, fmt.Errorf("write to a stream that has ended: %w", net.ErrClosed)
		case len(b) == 0:
			c.flushLocked()
			return n, nil
		case s.send.deadline.passedLocked():
			return n, os.ErrDeadlineExceeded
		case len(c.w.queue) > queueLimit && !c.w.busy:
			// Not already at queueLimit: the few bytes that do not fit into four frames leave with
			// them.
			c.flushLocked()
			continue
		case len(c.w.queue) > queueLimit:
			c.w.room.Wait()
			continue
		case s.send.credit == 0:
			c.waitForCreditLocked(s)
			continue
		}
		s.owesAnswer.Store(false)
		s.sent.Store(true)
		k := min(len(b), s.send.credit, maxData)
		c.queueLocked(s.id, kindData, b[:k])
		c.expectPongLocked()
		s.send.credit -= k
		n += k
		b = b[k:]
	}
}

// waitForCreditLocked waits until a stream may send more, or nothing any more. It releases the lock
// meanwhile.
func (c *Conn) waitForCreditLocked(s *Stream) {
	c.beginReadWaitLocked()
	c.flushLocked()
	for s.send.credit == 0 && !s.send.closed && c.err == nil && !s.send.deadline.passedLocked() {
		s.send.ready.Wait()
	}
	c.r.waiting--
}

// grant handles a window frame.
func (c *Conn) grant(s *Stream, n uint32) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n == 0 || n > maxWindow || s.send.credit+int(n) > maxWindow {
		return fmt.Errorf("%w: a window of %d more bytes", errFrame, n)
	}
	s.send.credit += int(n)
	s.send.ready.Broadcast()
	return nil
}

// CloseWrite sends the end of this direction; the other one goes on.
func (s *Stream) CloseWrite() error {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.conn.closeSendLocked(s)
	return nil
}

// closeSendLocked sends the end of what a stream sends.
func (c *Conn) closeSendLocked(s *Stream) {
	if s.send.closed || c.err != nil {
		return
	}
	c.queueLocked(s.id, kindFin, nil)
	c.wakeWriterLocked()
	c.stopSendLocked(s)
	c.removeIfOverLocked(s)
}

// stopSendLocked makes a stream send nothing more.
func (c *Conn) stopSendLocked(s *Stream) {
	s.send.closed = true
	s.send.deadline.stopLocked()
	c.wakeSenderLocked(s)
}

func (c *Conn) wakeSenderLocked(s *Stream) {
	s.send.ready.Broadcast()
	c.w.room.Broadcast()
}

// removeIfOverLocked removes a stream both of whose directions have ended. join removes an accepted
// one.
func (c *Conn) removeIfOverLocked(s *Stream) {
	if s.send.closed && s.send.peerDone && s.answered != nil {
		c.removeLocked(s)
	}
}

// Close implements net.Conn. If there are unread bytes, and if more arrive later, the peer gets a
// reset.
func (s *Stream) Close() error {
	s.mu.Lock()
	unread := s.recv.queue.len() > 0
	s.recv.queue.drop()
	s.endReceiveLocked(net.ErrClosed)
	s.mu.Unlock()
	if unread {
		return s.Abort()
	}
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	s.conn.closeSendLocked(s)
	s.conn.removeLocked(s)
	return nil
}

// Abort cuts the stream: the peer's process sees a reset.
func (s *Stream) Abort() error {
	c := s.conn
	c.mu.Lock()
	if c.streams[s.id] == s {
		c.queueLocked(s.id, kindReset, nil)
		c.wakeWriterLocked()
		c.removeLocked(s)
	}
	c.mu.Unlock()
	s.cut(net.ErrClosed)
	return nil
}

// cut ends the stream at this end.
func (s *Stream) cut(err error) {
	s.conn.mu.Lock()
	s.conn.stopSendLocked(s)
	s.conn.mu.Unlock()
	s.mu.Lock()
	local := s.local.conn
	if local != nil || s.answered == nil {
		s.recv.queue.drop()
	}
	s.endReceiveLocked(err)
	s.mu.Unlock()
	if local != nil {
		netx.Abort(local)
	}
}

// endReceiveLocked makes reads end with err, once the queue is empty.
func (s *Stream) endReceiveLocked(err error) {
	if s.recv.err == nil {
		s.recv.err = err
	}
	s.recv.deadline.stopLocked()
	s.wakeReaderLocked()
}

// receive handles data for the stream.
func (s *Stream) receive(b []byte) error {
	s.conn.noteReceiver(s)
	s.owesAnswer.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.recv.fin || !s.recv.window.use(len(b)) {
		return fmt.Errorf("%w: data after the end or beyond the window", errFrame)
	}
	var err error
	switch {
	case s.recv.err != nil || s.local.closed:
		b = nil
	case s.recv.queue.len() > 0:
	case s.recv.filled < len(s.recv.into):
		n := copy(s.recv.into[s.recv.filled:], b)
		s.recv.filled += n
		b = b[n:]
		s.recv.readable.Broadcast()
	case s.local.conn != nil && !s.local.draining:
		b, err = s.passLocked(b)
	}
	if len(b) > 0 && err == nil {
		s.recv.queue.add(b)
		s.recv.readable.Broadcast()
		s.drainLocked()
	}
	if err != nil {
		s.closeLocalLocked()
	}
	return nil
}

// receiveFin handles the end of what the peer sends.
func (s *Stream) receiveFin() error {
	s.mu.Lock()
	if s.recv.fin {
		s.mu.Unlock()
		return fmt.Errorf("%w: a second fin", errFrame)
	}
	s.recv.fin = true
	s.recv.readable.Broadcast()
	if s.local.conn != nil && !s.local.draining {
		netx.CloseWrite(s.local.conn)
	}
	s.mu.Unlock()
	s.conn.mu.Lock()
	s.send.peerDone = true
	s.conn.removeIfOverLocked(s)
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
	for s.recv.queue.len() == 0 {
		switch {
		case s.recv.fin:
			return 0, io.EOF
		case s.recv.err != nil:
			return 0, s.recv.err
		case s.recv.deadline.passedLocked():
			return 0, os.ErrDeadlineExceeded
		case s.recv.into != nil: // another Read waits
			s.recv.readable.Wait()
			continue
		}
		s.recv.into = b
		if s.recv.reads = s.conn.acquireRead(); s.recv.reads {
			s.readConnLocked()
		} else {
			s.recv.readable.Wait()
			s.conn.endReadWait()
		}
		s.recv.into = nil
		if n := s.recv.filled; n > 0 {
			s.recv.filled = 0
			s.consumedLocked(n)
			return n, nil
		}
	}
	n := s.recv.queue.take(b)
	s.consumedLocked(n)
	return n, nil
}

// ReadAvailable reads what has already arrived, without waiting. It returns 0 if nothing has.
func (s *Stream) ReadAvailable(b []byte) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	waiting := s.recv.into != nil
	open := s.recv.err == nil && !s.recv.fin
	if s.recv.queue.len() == 0 && !waiting && open && s.conn.acquireBufferedRead() {
		s.recv.into, s.recv.reads = b, true
		s.readConnLocked()
		s.recv.into = nil
		n, s.recv.filled = s.recv.filled, 0
	}
	n += s.recv.queue.take(b[n:])
	if n > 0 {
		s.consumedLocked(n)
	}
	return n
}

// readConnLocked reads the connection once, after the read was acquired. It releases the lock
// meanwhile.
func (s *Stream) readConnLocked() {
	s.mu.Unlock()
	err := s.conn.readOnce()
	s.mu.Lock()
	s.recv.reads = false
	if s.recv.interrupted {
		s.recv.interrupted = false
		_ = s.conn.conn.SetReadDeadline(time.Time{})
	}
	s.mu.Unlock()
	s.conn.releaseRead()
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // a deadline is an interruption
		s.conn.fail(err)
	}
	s.mu.Lock()
}

func (s *Stream) wakeReaderLocked() {
	if s.recv.reads {
		s.recv.interrupted = true
		_ = s.conn.conn.SetReadDeadline(time.Unix(1, 0))
	}
	s.recv.readable.Broadcast()
}

// Alone reports whether the stream is the only one on its connection, which it then may read
// itself.
func (s *Stream) Alone() bool {
	s.conn.mu.Lock()
	defer s.conn.mu.Unlock()
	return s.conn.aloneLocked()
}

// Idle reports whether the stream is open and has no unread bytes, or else whether it has ended. It
// reads what has already arrived.
func (s *Stream) Idle() (idle, ended bool) {
	s.conn.readAvailable()
	s.mu.Lock()
	defer s.mu.Unlock()
	empty := s.recv.queue.len() == 0
	ended = empty && (s.recv.fin || s.recv.err != nil)
	return empty && !ended, ended
}

// LocalAddr implements net.Conn: it is the connection's.
func (s *Stream) LocalAddr() net.Addr { return s.conn.conn.LocalAddr() }

// RemoteAddr implements net.Conn: it is the connection's.
func (s *Stream) RemoteAddr() net.Addr { return s.conn.conn.RemoteAddr() }

// SetDeadline implements net.Conn.
func (s *Stream) SetDeadline(t time.Time) error {
	s.recv.deadline.set(t)
	s.send.deadline.set(t)
	return nil
}

// SetReadDeadline implements net.Conn.
func (s *Stream) SetReadDeadline(t time.Time) error {
	s.recv.deadline.set(t)
	return nil
}

// SetWriteDeadline implements net.Conn.
func (s *Stream) SetWriteDeadline(t time.Time) error {
	s.send.deadline.set(t)
	return nil
}
