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

// A stream transport carries each WireGuard message as a 4-byte big-endian length and the message.
// A stream has no datagram limit of its own, so messages may be as large as WireGuard's buffers.
const (
	FrameHeader = 4
	MaxMessage  = 65535
	// readChunk is how much one read of a stream may take, in bytes: several of the largest
	// messages.
	readChunk = 256 << 10
	// sendQueue bounds the frames that wait for a stream's writer, in bytes. Beyond it Send drops
	// messages, so that the TCP inside sees an ordinary lossy link and not an ever longer queue.
	sendQueue = 1 << 20
	// sendWait is how long a sender waits for room before it drops a message.
	sendWait = 20 * time.Millisecond
	// A sender writes messages of up to sendNow bytes in all itself when the stream has been idle
	// for idleAfter. That saves waking the writer, and does not block.
	sendNow   = 4 << 10
	idleAfter = 2 * time.Millisecond
	// Messages of up to smallMessage bytes pass the others. They belong to a flow whose user waits,
	// or acknowledge received data.
	smallMessage = 1500
	// Frames of up to joinBelow bytes in all are written together with the small messages.
	joinBelow = 16 << 10
	// shrinkAfter is how long a stream without anything to write keeps its buffers.
	shrinkAfter = 5 * time.Second
)

var errFrameTooLong = errors.New("a frame is longer than any WireGuard message")

// splitFrames cuts buf into whole frames, calls message with each, and returns the bytes of the
// unfinished last one.
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

// StreamWire is one open stream, and the conn.Endpoint of the peer behind it.
type StreamWire struct {
	id      string
	carrier io.ReadWriteCloser
	work    chan struct{} // wakes the writer
	done    chan struct{} // closed by Close
	// express is the express stream beside this one, and parent the stream that this one is the
	// express stream of. Each is nil for none.
	express, parent atomic.Pointer[StreamWire]
	authenticated   atomic.Bool // the other end has proved who it is
	reader          streamReader

	// mu guards the fields below.
	mu        sync.Mutex
	roomCond  sync.Cond // signals that the writer has emptied the queue
	queued    frames
	spare     frames    // the writer's buffers, to use again
	direct    []byte    // the buffer of a sender that writes itself; it belongs to whoever set writing
	writing   bool      // a sender or the writer is writing
	lastWrite time.Time // when the writer last wrote
	closed    bool
}

// frames are frames for the writer: those of small messages, which pass the others, and the others.
type frames struct{ small, large []byte }

func (f frames) empty() bool { return len(f.small) == 0 && len(f.large) == 0 }

// streamReader is the state of a stream that one of WireGuard's receivers reads itself. It belongs
// to one goroutine at a time: first to readLoop, then to the receiver.
type streamReader struct {
	rest     []byte     // what readLoop read of an unfinished message
	buf      []byte     // nil before the first read of a receiver
	from, to int        // buf[from:to] is what the receiver has not taken yet
	ended    chan error // gets the error at the end
}

func newStreamWire(id string, rw io.ReadWriteCloser) *StreamWire {
	s := &StreamWire{
		id:      id,
		carrier: rw,
		work:    make(chan struct{}, 1),
		done:    make(chan struct{}),
		reader:  streamReader{ended: make(chan error, 1)},
	}
	s.roomCond.L = &s.mu
	return s
}

// Carrier is what the stream's bytes go through.
func (s *StreamWire) Carrier() io.ReadWriteCloser { return s.carrier }

// Express is the express stream beside this one; nil for none.
func (s *StreamWire) Express() *StreamWire { return s.express.Load() }

// Send queues messages for the writer, which writes all queued messages at once. It drops a message
// that finds no room.
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
			if len(s.queued.small)+size <= sendQueue {
				s.queued.small = appendFrame(s.queued.small, m)
			}
		case s.waitForRoomLocked(size):
			s.queued.large = appendFrame(s.queued.large, m)
		}
	}
	s.mu.Unlock()
	notify(s.work)
	return nil
}

// idleLocked reports whether nothing waits and nothing was written lately.
func (s *StreamWire) idleLocked() bool {
	return s.queued.empty() && !s.writing && time.Since(s.lastWrite) > idleAfter
}

func appendFrame(to, message []byte) []byte {
	return append(binary.BigEndian.AppendUint32(to, uint32(len(message))), message...)
}

// waitForRoomLocked waits a little for room in the queue, and reports whether there is some.
func (s *StreamWire) waitForRoomLocked(size int) bool {
	full := func() bool { return len(s.queued.large) > 0 && len(s.queued.large)+size > sendQueue }
	if !full() {
		return true
	}
	notify(s.work) // wakes the writer for earlier frames
	timer := time.AfterFunc(sendWait, func() { s.mu.Lock(); s.roomCond.Broadcast(); s.mu.Unlock() })
	defer timer.Stop()
	for deadline := time.Now().Add(sendWait); !s.closed && full(); s.roomCond.Wait() {
		if !time.Now().Before(deadline) {
			return false
		}
	}
	return !s.closed
}

// writeNow writes in the writer's place. The caller has locked s.mu; writeNow unlocks it.
func (s *StreamWire) writeNow(messages [][]byte) error {
	s.writing = true
	s.mu.Unlock()
	s.direct = s.direct[:0]
	for _, m := range messages {
		s.direct = appendFrame(s.direct, m)
	}
	err := s.write(s.direct)
	s.mu.Lock()
	s.writing = false
	waiting := !s.queued.empty()
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
		f := s.take()
		if f.empty() {
			continue
		}
		if len(f.small) > 0 && len(f.large) <= joinBelow {
			f.small, f.large = append(f.small, f.large...), f.large[:0]
		}
		if err := s.write(f.small); err != nil {
			return err
		}
		if err := s.write(f.large); err != nil {
			return err
		}
		s.mu.Lock()
		s.spare = frames{small: f.small[:0], large: f.large[:0]}
		s.writing, s.lastWrite = false, time.Now()
		waiting := !s.queued.empty()
		s.mu.Unlock()
		if waiting {
			notify(s.work)
		} else {
			idle.Reset(shrinkAfter)
		}
	}
}

// take gives the writer all queued frames.
func (s *StreamWire) take() frames {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing || s.queued.empty() { // a sender writes, and wakes the writer afterwards; or nothing waits
		return frames{}
	}
	f := s.queued
	s.queued, s.spare = frames{small: s.spare.small[:0], large: s.spare.large[:0]}, frames{}
	s.writing = true
	s.roomCond.Broadcast()
	return f
}

// shrink frees the buffers of a stream on which nothing waits.
func (s *StreamWire) shrink() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.writing || !s.queued.empty() {
		return
	}
	s.queued, s.spare = frames{}, frames{}
}

// readLoop reads the stream until one of WireGuard's receivers is free to read it itself, and then
// waits for its end. A receiver that reads the stream itself need not be woken for each message.
func (s *StreamWire) readLoop(receivers chan<- *StreamWire, probe func(Wire, []byte), deliver func(*chunk) bool) error {
	var rest []byte
	for {
		s.reader.rest = rest
		if s.authenticated.Load() {
			select {
			case receivers <- s:
				return <-s.reader.ended
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
		unfinished, err := splitFrames(c.buf[:have+n], func(m []byte) {
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
		rest = append(rest[:0], unfinished...)
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

// receive reads messages into WireGuard's buffers.
func (s *StreamWire) receive(
	packets [][]byte, sizes []int, eps []conn.Endpoint, probe func(Wire, []byte),
) (n int, err error) {
	if s.reader.buf == nil {
		s.reader.buf = make([]byte, readChunk)
		s.reader.to = copy(s.reader.buf, s.reader.rest)
	}
	for {
		for n < len(packets) && s.reader.to-s.reader.from >= FrameHeader {
			size := int(binary.BigEndian.Uint32(s.reader.buf[s.reader.from:]))
			if size > MaxMessage {
				return n, fmt.Errorf("%w: %d bytes", errFrameTooLong, size)
			}
			end := s.reader.from + FrameHeader + size
			if end > s.reader.to {
				break
			}
			m := s.reader.buf[s.reader.from+FrameHeader : end]
			s.reader.from = end
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
		if s.reader.from == s.reader.to || len(s.reader.buf)-s.reader.from < FrameHeader+MaxMessage {
			// This makes room for the rest of an unfinished message.
			s.reader.from, s.reader.to = 0, copy(s.reader.buf, s.reader.buf[s.reader.from:s.reader.to])
		}
		got, err := s.carrier.Read(s.reader.buf[s.reader.to:])
		if err != nil {
			return 0, err
		}
		s.reader.to += got
	}
}

// Close ends both loops. It may be called more than once.
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

// These are the methods of conn.Endpoint. A stream has no addresses that WireGuard could use.

func (s *StreamWire) ClearSrc()           {}
func (s *StreamWire) SrcToString() string { return "" }
func (s *StreamWire) DstToString() string { return s.id }
func (s *StreamWire) DstToBytes() []byte  { return []byte(s.id) }
func (s *StreamWire) DstIP() netip.Addr   { return netip.Addr{} }
func (s *StreamWire) SrcIP() netip.Addr   { return netip.Addr{} }
