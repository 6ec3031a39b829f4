package vif

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"
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
	room   sync.Cond // signalled when the writer has taken the queue
	work   chan struct{}
	queue  []byte // frames that wait for the writer
	spare  []byte // the writer's other buffer
	closed bool
	done   chan struct{}
}

func newStream(id string, rw io.ReadWriteCloser) *stream {
	s := &stream{id: id, rw: rw, work: make(chan struct{}, 1), done: make(chan struct{})}
	s.room.L = &s.mu
	return s
}

// send queues messages for the writer, which writes all that has gathered at once.
func (s *stream) send(messages [][]byte) error {
	size := 0
	for _, m := range messages {
		size += frameHeader + len(m)
	}
	s.mu.Lock()
	if len(s.queue) > 0 && len(s.queue)+size > sendQueue && !s.waitForRoom(size) || s.closed {
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return errNoWay
		}
		return nil
	}
	for _, m := range messages {
		s.queue = binary.BigEndian.AppendUint32(s.queue, uint32(len(m)))
		s.queue = append(s.queue, m...)
	}
	s.mu.Unlock()
	select {
	case s.work <- struct{}{}:
	default:
	}
	return nil
}

func (s *stream) waitForRoom(size int) bool {
	timer := time.AfterFunc(sendWait, func() { s.mu.Lock(); s.room.Broadcast(); s.mu.Unlock() })
	defer timer.Stop()
	deadline := time.Now().Add(sendWait)
	for !s.closed && len(s.queue) > 0 && len(s.queue)+size > sendQueue {
		if !time.Now().Before(deadline) {
			return false
		}
		s.room.Wait()
	}
	return !s.closed
}

func (s *stream) writeLoop() error {
	for {
		select {
		case <-s.done:
			return nil
		case <-s.work:
		}
		s.mu.Lock()
		out := s.queue
		s.queue, s.spare = s.spare[:0], nil
		s.room.Broadcast()
		s.mu.Unlock()
		if len(out) > 0 {
			if _, err := s.rw.Write(out); err != nil {
				return fmt.Errorf("write to the tunnel: %w", err)
			}
		}
		s.mu.Lock()
		s.spare = out[:0]
		s.mu.Unlock()
	}
}

func (s *stream) readLoop(probe func(wire, []byte), deliver func(*chunk) bool) error {
	var rest []byte
	for {
		c := newChunk(s)
		have := copy(c.buf, rest)
		n, err := s.rw.Read(c.buf[have:])
		if err != nil {
			c.put()
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("read from the tunnel: %w", err)
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
