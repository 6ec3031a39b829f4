package mux

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/netx"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// maxStreams is how many streams an end opens at a time. It bounds the memory for data that
	// nobody reads.
	maxStreams = 128
	// closeTimeout is how long an orderly end of the connection may take.
	closeTimeout = time.Second
)

var (
	// ErrTooManyStreams means that the connection already carries as many streams as it may.
	ErrTooManyStreams = errors.New("there are too many streams on the connection")
	// ErrConnLost means that the connection is lost, and with it the stream.
	ErrConnLost = fmt.Errorf("the connection that carries the stream has ended: %w", syscall.ECONNRESET)
)

// RefusedError is the answer of a laptop that does not open a stream.
type RefusedError struct{ Status agentv1.RelayStatus }

// Error implements error.
func (e *RefusedError) Error() string { return "the laptop refused the stream: " + e.Status.String() }

// Accept dials the local process that a stream is for. It returns either a connection, which the
// stream then owns, or nil and the status to refuse the stream with.
type Accept func(*agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus)

// Conn is one end of a relay connection that carries streams. Its methods may be called
// concurrently.
type Conn struct {
	conn    net.Conn
	accept  Accept         // nil for the end that opens streams
	running sync.WaitGroup // the goroutines of accepted streams, and calls to onSilence: Run waits for them
	done    chan struct{}  // closed at the end
	in      input          // only for the goroutine that has acquired the read (see reader)

	// mu guards the fields below, and the send part of each stream. Lock Stream.mu first where both
	// are needed.
	mu      sync.Mutex
	streams map[uint32]*Stream
	lastID  uint32 // the highest number of a stream so far
	err     error  // why the connection has ended; nil while it works
	retired bool   // the connection ends with its last stream
	grown   int    // by how many bytes the windows of all streams have grown
	w       writer
	r       reader
	ka      keepalive
}

// New returns an end of the connection c, which it owns from now on. With a nil accept it is the
// end that opens streams, otherwise the end that accepts them. It carries nothing until Run is
// called.
func New(c net.Conn, accept Accept) *Conn {
	m := &Conn{conn: netx.Wrap(c), accept: accept, done: make(chan struct{}), streams: map[uint32]*Stream{}}
	m.w.wake = make(chan struct{}, 1)
	m.w.room.L, m.r.turn.L = &m.mu, &m.mu
	return m
}

// Run carries frames until the connection ends, and returns why it ended. It closes the connection,
// and returns after all streams that were accepted have ended.
func (c *Conn) Run() error {
	var writing sync.WaitGroup
	writing.Go(c.writeLoop)
	err := c.readLoop()
	c.fail(err)
	writing.Wait()
	c.running.Wait()
	return err
}

// Retire makes the connection end as soon as it has no stream. It opens and accepts no new one.
func (c *Conn) Retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = true
	c.endIfUnusedLocked()
}

// endIfUnusedLocked has the writing goroutine end a retired connection without streams.
func (c *Conn) endIfUnusedLocked() {
	if c.unusedLocked() {
		signal(c.w.wake)
	}
}

func (c *Conn) unusedLocked() bool { return c.retired && len(c.streams) == 0 }

// Close ends all streams in order, and then the connection. It waits up to closeTimeout for the
// peer.
func (c *Conn) Close() error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(closeTimeout))
	c.mu.Lock()
	c.retired = true
	for _, s := range c.streams {
		c.closeSendLocked(s)
	}
	for c.err == nil && (c.w.busy || len(c.w.queue) > 0) {
		if c.w.busy {
			c.w.room.Wait()
		} else {
			c.flushLocked()
		}
	}
	c.mu.Unlock()
	// Closing at once would send a reset if unread bytes are left, and the peer would lose what was
	// just written.
	netx.CloseWrite(c.conn)
	select {
	case <-c.done:
	case <-time.After(closeTimeout):
	}
	c.fail(nil)
	return nil
}

// fail ends the connection and cuts its streams. Only the first call has an effect.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = ErrConnLost
	if err != nil {
		// Not wrapped: an orderly end of the connection, io.EOF, is not an orderly end of a stream.
		c.err = fmt.Errorf("%w: %v", ErrConnLost, err) //nolint:errorlint // see above
	}
	if c.pongOverdueLocked() {
		c.loseDeliveriesLocked() // their callers learn it from the end of their streams
	}
	close(c.done)
	streams := c.streams
	c.streams = map[uint32]*Stream{}
	c.w.room.Broadcast()
	c.r.turn.Broadcast()
	c.mu.Unlock()
	for _, s := range streams {
		s.cut(c.err)
	}
	_ = c.conn.Close()
}

// Open asks the peer for a stream and waits for the answer. Exactly one result is nil. The error is
// a *RefusedError if the peer refused, ErrTooManyStreams or ErrConnLost if the peer was not asked
// or its answer is lost, or the error of ctx. After an error nothing is left of the stream. The
// caller closes the stream.
func (c *Conn) Open(ctx context.Context, header *agentv1.RelayHeader) (*Stream, error) {
	b, err := proto.Marshal(header)
	if err != nil {
		return nil, fmt.Errorf("encode relay header: %w", err)
	}
	if len(b) > maxData {
		return nil, fmt.Errorf("relay header of %d bytes is over the limit of %d", len(b), maxData)
	}
	s, err := c.requestStream(b)
	if err != nil {
		return nil, err
	}
	defer c.endReadWait()
	select {
	case status := <-s.answered:
		if status != agentv1.RelayStatus_RELAY_STATUS_OK {
			c.remove(s)
			return nil, &RefusedError{Status: status}
		}
		return s, nil
	case <-c.done:
		return nil, c.err
	case <-ctx.Done():
		_ = s.Abort()
		return nil, ctx.Err()
	}
}

// requestStream sends an open frame. The caller calls endReadWait when it has stopped waiting for
// the answer.
func (c *Conn) requestStream(header []byte) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil, c.err
	case c.retired || c.lastID == 1<<32-1:
		return nil, ErrConnLost
	case len(c.streams) >= maxStreams:
		return nil, ErrTooManyStreams
	}
	c.lastID++
	s := newStream(c, c.lastID)
	s.answered = make(chan agentv1.RelayStatus, 1)
	c.streams[s.id] = s
	c.beginReadWaitLocked()
	c.queueLocked(s.id, kindOpen, header)
	c.expectPongLocked()
	c.flushLocked()
	return s, nil
}

func (c *Conn) removeLocked(s *Stream) {
	if c.streams[s.id] == s {
		delete(c.streams, s.id)
		c.grown -= s.send.grown
		c.endIfUnusedLocked()
	}
}

func (c *Conn) remove(s *Stream) {
	c.mu.Lock()
	c.removeLocked(s)
	c.mu.Unlock()
}

// stream returns the stream that a frame is for, or nil if it is over here. The frame shows that
// the peer is there.
func (c *Conn) stream(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ka.received = true
	return c.streams[id]
}

// handleData implements frameHandler.
func (c *Conn) handleData(id uint32, b []byte) error {
	if s := c.stream(id); s != nil {
		return s.receive(b)
	}
	return c.sendControl(id, kindReset, nil)
}

// handleControl implements frameHandler.
func (c *Conn) handleControl(h header, payload []byte) error {
	if h.kind == kindOpen {
		return c.handleOpen(h.stream, payload)
	}
	if h.stream == pingStream && h.kind == kindReset {
		return c.handlePong()
	}
	s := c.stream(h.stream)
	if s == nil {
		return nil
	}
	switch h.kind {
	case kindAnswer:
		select {
		case s.answered <- agentv1.RelayStatus(payload[0]): // nil, so never ready, for an accepted stream
		default:
			return fmt.Errorf("%w: an answer that nothing asked for", errFrame)
		}
	case kindFin:
		return s.receiveFin()
	case kindReset:
		c.remove(s)
		s.cut(errReset)
	case kindWindow:
		return c.grant(s, binary.BigEndian.Uint32(payload))
	}
	return nil
}

// handleOpen accepts a stream, and dials its local process in a goroutine that Run waits for.
func (c *Conn) handleOpen(id uint32, payload []byte) error {
	header := new(agentv1.RelayHeader)
	if err := proto.Unmarshal(payload, header); err != nil {
		return fmt.Errorf("decode relay header: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accept == nil || id <= c.lastID {
		return fmt.Errorf("%w: a stream that must not be opened", errFrame)
	}
	c.lastID = id
	if c.err != nil || c.retired {
		return nil
	}
	s := newStream(c, id)
	c.streams[id] = s
	c.running.Go(func() {
		local, status := c.accept(header)
		if local == nil {
			c.remove(s)
			_ = c.sendControl(id, kindAnswer, []byte{byte(status)})
			return
		}
		s.join(netx.Wrap(local))
	})
	return nil
}
