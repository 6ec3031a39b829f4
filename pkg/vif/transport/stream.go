package transport

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// A stream transport carries each WireGuard message as a 4-byte big-endian length and the message. A stream has no
// datagram limit of its own, so messages may be as large as WireGuard's buffers.
const (
	FrameHeader = 4
	MaxMessage  = 65535
	// readChunk is how much one read of a stream may take: several of the largest messages.
	readChunk = 256 << 10
	// sendQueue bounds what waits for a stream's writer, in bytes. Beyond it messages are dropped, so that the TCP inside
	// sees an ordinary lossy link and not an ever longer queue.
	sendQueue = 1 << 20
	// sendWait is how long a sender waits for room before it drops.
	sendWait = 20 * time.Millisecond
	// Messages of so many bytes together are written by their sender when the stream has been idle for a while: that saves waking the writer,
	// and does not block.
	sendNow   = 4 << 10
	idleAfter = 2 * time.Millisecond
	// Messages that are no longer than that pass the others: they belong to somebody who waits, or acknowledge what came.
	smallMessage = 1500
	// What is no longer than that is written together with the small messages.
	joinBelow = 16 << 10
	// shrinkAfter is how long a stream without anything to write keeps its buffers.
	shrinkAfter = 5 * time.Second
)

var errFrameTooLong = errors.New("a frame is longer than a WireGuard message can be")

// splitFrames cuts buf into whole frames, calls message with each, and returns the bytes of the unfinished last one.
func splitFrames(buf []byte, message func([]byte)) (rest []byte, err error) {
	for len(buf) >= FrameHeader {
		n := binary.BigEndian.Uint32(buf)
		if n > MaxMessage {
			return nil, fmt.Errorf("%w: %d bytes", errFrameTooLong, n)
		}
		if len(buf) < FrameHeader+int(n) {
			break
		}
		message(buf[FrameHeader : FrameHeader+n])
		buf = buf[FrameHeader+n:]
	}
	return buf, nil
}

// stream is one open transport, and the conn.Endpoint of the peer behind it.
type StreamWire struct {
	id      string
	carrier io.ReadWriteCloser

	mu       sync.Mutex
	roomCond sync.Cond // signalled when the writer has taken from the queue
	work     chan struct{}
	urgent   []byte // frames of small messages that wait for the writer; they pass the others
	queue    []byte // frames of the others
	// The writer's buffers, and what a sender writes itself.
	spare, spareUrgent, small []byte
	writing                   bool      // somebody is
	lastWrite                 time.Time // when the writer last did
	closed                    bool
	done                      chan struct{}
	// Its express lane, or the stream whose lane it is; nil for none.
	express, parent atomic.Pointer[StreamWire]
	authenticated   atomic.Bool // that the other end is whom it should be; see strangers

	// Once WireGuard reads the stream itself: what was read before, what is not yet taken of buf, and how that ended.
	rest     []byte
	buf      []byte
	from, to int
	ended    chan error
}

func newStreamWire(id string, rw io.ReadWriteCloser) *StreamWire {
	s := &StreamWire{id: id, carrier: rw, work: make(chan struct{}, 1), done: make(chan struct{}), ended: make(chan error, 1)}
	s.roomCond.L = &s.mu
	return s
}

// Carrier is what the stream's bytes go through.
func (s *StreamWire) Carrier() io.ReadWriteCloser { return s.carrier }

// Express is the express stream beside this one; nil for none.
func (s *StreamWire) Express() *StreamWire { return s.express.Load() }

// send queues messages for the writer, which writes all that has gathered at once. What finds no room is dropped.
func (s *StreamWire) Send(messages [][]byte) error {
	size, smaller := 0, true
	for _, m := range messages {
		size += FrameHeader + len(m)
		smaller = smaller && len(m) <= smallMessage
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errNoPath
	}
	if smaller && size <= sendNow && s.idleLocked() {
		return s.writeNow(messages)
	}
	for _, m := range messages {
		switch size := FrameHeader + len(m); {
		case len(m) <= smallMessage:
			if len(s.urgent)+size <= sendQueue {
				s.urgent = appendFrame(s.urgent, m)
			}
		case s.waitForRoomLocked(size):
			s.queue = appendFrame(s.queue, m)
		}
	}
	s.mu.Unlock()
	notify(s.work)
	return nil
}

// idle says whether nothing waits, and nothing was written lately; s.mu is held.
func (s *StreamWire) idleLocked() bool {
	return len(s.queue) == 0 && len(s.urgent) == 0 && !s.writing && time.Since(s.lastWrite) > idleAfter
}

func appendFrame(to, message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(message))), message...)
}

// hasRoom says whether a sender may add to the queue, and waits a little for that; s.mu is held.
func (s *StreamWire) waitForRoomLocked(size int) bool {
	full := func() bool { return len(s.queue) > 0 && len(s.queue)+size > sendQueue }
	if !full() {
		return true
	}
	notify(s.work) // of what was added before
	timer := time.AfterFunc(sendWait, func() { s.mu.Lock(); s.roomCond.Broadcast(); s.mu.Unlock() })
	defer timer.Stop()
	for deadline := time.Now().Add(sendWait); !s.closed && full(); s.roomCond.Wait() {
		if !time.Now().Before(deadline) {
			return false
		}
	}
	return !s.closed
}

// writeNow writes in the writer's place. It unlocks s.mu.
func (s *StreamWire) writeNow(messages [][]byte) error {
	s.writing = true
	s.mu.Unlock()
	s.small = s.small[:0]
	for _, m := range messages {
		s.small = appendFrame(s.small, m)
	}
	err := s.write(s.small)
	s.mu.Lock()
	s.writing = false
	waiting := len(s.queue) > 0 || len(s.urgent) > 0
	s.mu.Unlock()
	if err != nil {
		s.Close()
		return err
	}
	if waiting {
		notify(s.work)
	}
	return nil
}

func (s *StreamWire) write(frames []byte) error {
	if len(frames) == 0 {
		return nil
	}
	if _, err := s.carrier.Write(frames); err != nil {
		return fmt.Errorf("write to the tunnel: %w", err)
	}
	return nil
}

func (s *StreamWire) writeLoop() error {
	idle := time.NewTimer(shrinkAfter)
	defer idle.Stop()
	for {
		select {
		case <-s.done:
			return nil
		case <-s.work:
		case <-idle.C:
			s.shrink()
		}
		urgent, frames := s.take()
		if len(urgent) == 0 && len(frames) == 0 {
			continue
		}
		if len(urgent) > 0 && len(frames) <= joinBelow {
			urgent, frames = append(urgent, frames...), frames[:0]
		}
		if err := s.write(urgent); err != nil {
			return err
		}
		if err := s.write(frames); err != nil {
			return err
		}
		s.mu.Lock()
		s.spare, s.spareUrgent, s.writing, s.lastWrite = frames[:0], urgent[:0], false, time.Now()
		waiting := len(s.queue) > 0 || len(s.urgent) > 0
		s.mu.Unlock()
		if waiting {
			notify(s.work)
		} else {
			idle.Reset(shrinkAfter)
		}
	}
}

// take gives the writer what has gathered.
func (s *StreamWire) take() (urgent, frames []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing || len(s.urgent) == 0 && len(s.queue) == 0 { // a sender writes, and will tell when it is done; or all is written
		return nil, nil
	}
	urgent, s.urgent, s.spareUrgent = s.urgent, s.spareUrgent[:0], nil
	frames, s.queue, s.spare = s.queue, s.spare[:0], nil
	s.roomCond.Broadcast()
	s.writing = len(urgent) > 0 || len(frames) > 0
	return urgent, frames
}

// shrink gives back the memory of a stream on which nothing waits.
func (s *StreamWire) shrink() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing || len(s.queue) > 0 || len(s.urgent) > 0 {
		return
	}
	s.queue, s.urgent, s.spare, s.spareUrgent = nil, nil, nil, nil
}

// readLoop reads until one of WireGuard's receivers is free to read the stream itself, which saves waking it each time, and then waits for
// the end.
func (s *StreamWire) readLoop(receivers chan<- *StreamWire, probe func(Wire, []byte), deliver func(*chunk) bool) error {
	var rest []byte
	for {
		s.rest = rest
		if s.authenticated.Load() {
			select {
			case receivers <- s:
				return <-s.ended
			default:
			}
		}
		c := s.chunk(rest)
		have := copy(c.buf, rest)
		n, err := s.carrier.Read(c.buf[have:])
		if err != nil {
			c.put()
			return readError(err)
		}
		left, err := splitFrames(c.buf[:have+n], func(m []byte) {
			if isProbe(m) {
				probe(s, m)
				return
			}
			c.messages = append(c.messages, m)
		})
		if err != nil {
			c.put()
			return err
		}
		rest = append(rest[:0], left...)
		if len(c.messages) == 0 {
			c.put()
			continue
		}
		if !deliver(c) {
			return nil
		}
	}
}

// readError is nil for the end of the stream.
func readError(err error) error {
	if errors.Is(err, io.EOF) {
		return nil
	}
	return fmt.Errorf("read from the tunnel: %w", err)
}

// receive reads messages for WireGuard.
func (s *StreamWire) receive(packets [][]byte, sizes []int, eps []conn.Endpoint, probe func(Wire, []byte)) (n int, err error) {
	if s.buf == nil {
		s.buf = make([]byte, readChunk)
		s.to = copy(s.buf, s.rest)
	}
	for {
		for n < len(packets) && s.to-s.from >= FrameHeader {
			size := int(binary.BigEndian.Uint32(s.buf[s.from:]))
			if size > MaxMessage {
				return n, fmt.Errorf("%w: %d bytes", errFrameTooLong, size)
			}
			end := s.from + FrameHeader + size
			if end > s.to {
				break
			}
			m := s.buf[s.from+FrameHeader : end]
			s.from = end
			if isProbe(m) {
				probe(s, m)
				continue
			}
			sizes[n], eps[n] = copy(packets[n], m), s.endpoint()
			n++
		}
		if n > 0 {
			return n, nil
		}
		if s.from == s.to || len(s.buf)-s.from < FrameHeader+MaxMessage {
			s.from, s.to = 0, copy(s.buf, s.buf[s.from:s.to]) // for the message that has begun to find room
		}
		got, err := s.carrier.Read(s.buf[s.to:])
		if err != nil {
			return 0, err
		}
		s.to += got
	}
}

// close ends both loops; it may be called more than once.
func (s *StreamWire) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
		s.roomCond.Broadcast()
	}
	s.mu.Unlock()
	_ = s.carrier.Close()
}

// The methods of conn.Endpoint. A stream has no addresses that WireGuard could use.
func (s *StreamWire) ClearSrc()           {}
func (s *StreamWire) SrcToString() string { return "" }
func (s *StreamWire) DstToString() string { return s.id }
func (s *StreamWire) DstToBytes() []byte  { return []byte(s.id) }
func (s *StreamWire) DstIP() netip.Addr   { return netip.Addr{} }
func (s *StreamWire) SrcIP() netip.Addr   { return netip.Addr{} }
