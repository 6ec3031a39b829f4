package vif

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

// UpgradeProtocol names a stream of WireGuard messages in the Upgrade header of HTTP/1.1.
const UpgradeProtocol = "detour-wireguard"

// A stream transport carries each WireGuard message as a 4-byte big-endian length and the message. A stream has no
// datagram limit of its own, so messages may be as large as WireGuard's buffers.
const (
	frameHeader = 4
	maxMessage  = 65535
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
	for len(buf) >= frameHeader {
		n := binary.BigEndian.Uint32(buf)
		if n > maxMessage {
			return nil, fmt.Errorf("%w: %d bytes", errFrameTooLong, n)
		}
		if len(buf) < frameHeader+int(n) {
			break
		}
		message(buf[frameHeader : frameHeader+n])
		buf = buf[frameHeader+n:]
	}
	return buf, nil
}

// stream is one open transport, and the conn.Endpoint of the peer behind it.
type stream struct {
	id string
	rw io.ReadWriteCloser

	mu     sync.Mutex
	room   sync.Cond // signalled when the writer has taken from the queue
	work   chan struct{}
	urgent []byte // frames of small messages that wait for the writer; they pass the others
	queue  []byte // frames of the others
	// The writer's buffers, and what a sender writes itself.
	spare, spareUrgent, small []byte
	writing                   bool      // somebody is
	wrote                     time.Time // when the writer last did
	closed                    bool
	done                      chan struct{}
	// Its express lane, or the stream whose lane it is; nil for none.
	lane, of atomic.Pointer[stream]
	proven   atomic.Bool // that the other end is whom it should be; see strangers

	// Once WireGuard reads the stream itself: what was read before, what is not yet taken of buf, and how that ended.
	rest     []byte
	buf      []byte
	from, to int
	ended    chan error
}

func newStream(id string, rw io.ReadWriteCloser) *stream {
	s := &stream{id: id, rw: rw, work: make(chan struct{}, 1), done: make(chan struct{}), ended: make(chan error, 1)}
	s.room.L = &s.mu
	return s
}

// send queues messages for the writer, which writes all that has gathered at once. What finds no room is dropped.
func (s *stream) send(messages [][]byte) error {
	size, smaller := 0, true
	for _, m := range messages {
		size += frameHeader + len(m)
		smaller = smaller && len(m) <= smallMessage
	}
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errNoWay
	}
	if smaller && size <= sendNow && s.idle() {
		return s.writeNow(messages)
	}
	for _, m := range messages {
		switch size := frameHeader + len(m); {
		case len(m) <= smallMessage:
			if len(s.urgent)+size <= sendQueue {
				s.urgent = appendFrame(s.urgent, m)
			}
		case s.hasRoom(size):
			s.queue = appendFrame(s.queue, m)
		}
	}
	s.mu.Unlock()
	tell(s.work)
	return nil
}

// idle says whether nothing waits, and nothing was written lately; s.mu is held.
func (s *stream) idle() bool {
	return len(s.queue) == 0 && len(s.urgent) == 0 && !s.writing && time.Since(s.wrote) > idleAfter
}

func appendFrame(to, message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(message))), message...)
}

// hasRoom says whether a sender may add to the queue, and waits a little for that; s.mu is held.
func (s *stream) hasRoom(size int) bool {
	full := func() bool { return len(s.queue) > 0 && len(s.queue)+size > sendQueue }
	if !full() {
		return true
	}
	tell(s.work) // of what was added before
	timer := time.AfterFunc(sendWait, func() { s.mu.Lock(); s.room.Broadcast(); s.mu.Unlock() })
	defer timer.Stop()
	for deadline := time.Now().Add(sendWait); !s.closed && full(); s.room.Wait() {
		if !time.Now().Before(deadline) {
			return false
		}
	}
	return !s.closed
}

// writeNow writes in the writer's place. It unlocks s.mu.
func (s *stream) writeNow(messages [][]byte) error {
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
		s.close()
		return err
	}
	if waiting {
		tell(s.work)
	}
	return nil
}

func (s *stream) write(frames []byte) error {
	if len(frames) == 0 {
		return nil
	}
	if _, err := s.rw.Write(frames); err != nil {
		return fmt.Errorf("write to the tunnel: %w", err)
	}
	return nil
}

func (s *stream) writeLoop() error {
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
		s.spare, s.spareUrgent, s.writing, s.wrote = frames[:0], urgent[:0], false, time.Now()
		waiting := len(s.queue) > 0 || len(s.urgent) > 0
		s.mu.Unlock()
		if waiting {
			tell(s.work)
		} else {
			idle.Reset(shrinkAfter)
		}
	}
}

// take gives the writer what has gathered.
func (s *stream) take() (urgent, frames []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing || len(s.urgent) == 0 && len(s.queue) == 0 { // a sender writes, and will tell when it is done; or all is written
		return nil, nil
	}
	urgent, s.urgent, s.spareUrgent = s.urgent, s.spareUrgent[:0], nil
	frames, s.queue, s.spare = s.queue, s.spare[:0], nil
	s.room.Broadcast()
	s.writing = len(urgent) > 0 || len(frames) > 0
	return urgent, frames
}

// shrink gives back the memory of a stream on which nothing waits.
func (s *stream) shrink() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing || len(s.queue) > 0 || len(s.urgent) > 0 {
		return
	}
	s.queue, s.urgent, s.spare, s.spareUrgent = nil, nil, nil, nil
}

// readLoop reads until one of WireGuard's receivers is free to read the stream itself, which saves waking it each time, and then waits for
// the end.
func (s *stream) readLoop(receivers chan<- *stream, probe func(wire, []byte), deliver func(*chunk) bool) error {
	var rest []byte
	for {
		s.rest = rest
		if s.proven.Load() {
			select {
			case receivers <- s:
				return <-s.ended
			default:
			}
		}
		c := s.chunk(rest)
		have := copy(c.buf, rest)
		n, err := s.rw.Read(c.buf[have:])
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
func (s *stream) receive(packets [][]byte, sizes []int, eps []conn.Endpoint, probe func(wire, []byte)) (n int, err error) {
	if s.buf == nil {
		s.buf = make([]byte, readChunk)
		s.to = copy(s.buf, s.rest)
	}
	for {
		for n < len(packets) && s.to-s.from >= frameHeader {
			size := int(binary.BigEndian.Uint32(s.buf[s.from:]))
			if size > maxMessage {
				return n, fmt.Errorf("%w: %d bytes", errFrameTooLong, size)
			}
			end := s.from + frameHeader + size
			if end > s.to {
				break
			}
			m := s.buf[s.from+frameHeader : end]
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
		if s.from == s.to || len(s.buf)-s.from < frameHeader+maxMessage {
			s.from, s.to = 0, copy(s.buf, s.buf[s.from:s.to]) // for the message that has begun to find room
		}
		got, err := s.rw.Read(s.buf[s.to:])
		if err != nil {
			return 0, err
		}
		s.to += got
	}
}

// close ends both loops; it may be called more than once.
func (s *stream) close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
		s.room.Broadcast()
	}
	s.mu.Unlock()
	_ = s.rw.Close()
}

// The methods of conn.Endpoint. A stream has no addresses that WireGuard could use.
func (s *stream) ClearSrc()           {}
func (s *stream) SrcToString() string { return "" }
func (s *stream) DstToString() string { return s.id }
func (s *stream) DstToBytes() []byte  { return []byte(s.id) }
func (s *stream) DstIP() netip.Addr   { return netip.Addr{} }
func (s *stream) SrcIP() netip.Addr   { return netip.Addr{} }
