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
	// maxStreams is how many streams an end opens at a time, which bounds the memory of what nobody takes.
	maxStreams = 128
	// goodbye is how long an end in order may take.
	goodbye = time.Second
)

var (
	// ErrTooManyStreams says that there are as many streams as there may be.
	ErrTooManyStreams = errors.New("there are too many streams on the connection")
	// ErrConnLost says that the connection is lost, and with it the stream.
	ErrConnLost = fmt.Errorf("the connection of the stream has ended: %w", syscall.ECONNRESET)
)

// Accept opens what a stream leads to, or says why not.
type Accept func(*agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus)

// Conn is one end of a connection that carries streams.
type Conn struct {
	conn   net.Conn
	accept Accept // nil for the end that opens streams
	joined sync.WaitGroup
	done   chan struct{} // closed at the end

	mu      sync.Mutex
	streams map[uint32]*Stream
	last    uint32 // the highest number
	err     error  // why it has ended
	retired bool   // it ends with the last stream
	grown   int    // what the windows have grown, of all streams
	writer
	reader
	pulse
}

// New makes an end that opens streams (accept is nil), or one that accepts them. It works while Run does.
func New(c net.Conn, accept Accept) *Conn {
	m := &Conn{conn: netx.Wrap(c), accept: accept, done: make(chan struct{}), streams: map[uint32]*Stream{}}
	m.work = make(chan struct{}, 1)
	m.room.L, m.turn.L = &m.mu, &m.mu
	return m
}

// Run carries frames until the connection ends.
func (c *Conn) Run() error {
	var writing sync.WaitGroup
	writing.Go(c.write)
	err := c.read()
	c.fail(err)
	writing.Wait()
	c.joined.Wait()
	return err
}

// Retire ends the connection as soon as it has no stream. No new one is opened.
func (c *Conn) Retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.retired = true
	c.settle()
}

// settle ends a retired connection without streams; c.mu is held.
func (c *Conn) settle() {
	if c.over() {
		tell(c.work)
	}
}

func (c *Conn) over() bool { return c.retired && len(c.streams) == 0 }

// Close ends all streams in order, and then the connection.
func (c *Conn) Close() error {
	_ = c.conn.SetWriteDeadline(time.Now().Add(goodbye))
	c.mu.Lock()
	c.retired = true
	for _, s := range c.streams {
		s.end()
	}
	for c.err == nil && (c.writing || len(c.queue) > 0) {
		if c.writing {
			c.room.Wait()
		} else {
			c.flush()
		}
	}
	c.mu.Unlock()
	// With something unread, closing at once would be a reset, which takes along what was just written.
	netx.CloseWrite(c.conn)
	select {
	case <-c.done:
	case <-time.After(goodbye):
	}
	c.fail(nil)
	return nil
}

// fail ends the connection; its streams are cut.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return
	}
	c.err = ErrConnLost
	if err != nil {
		c.err = fmt.Errorf("%w: %v", ErrConnLost, err) //nolint:errorlint // an end of the connection is none in order of a stream
	}
	if c.hushed() {
		c.withdraw() // who reads their streams hears of their end
	}
	close(c.done)
	streams := c.streams
	c.streams = map[uint32]*Stream{}
	c.room.Broadcast()
	c.turn.Broadcast()
	c.mu.Unlock()
	for _, s := range streams {
		s.cut(c.err)
	}
	_ = c.conn.Close()
}

// RefusedError is the answer of a laptop that does not open a stream.
type RefusedError struct{ Status agentv1.RelayStatus }

// Error implements error.
func (e *RefusedError) Error() string { return "the laptop refused the stream: " + e.Status.String() }

// Open asks the other end for a stream and waits for the answer. Exactly one result is nil. The error is a *RefusedError when the other
// end answered no, ErrTooManyStreams or ErrConnLost when it was not asked or its answer is lost, or that of ctx. After an error
// nothing is left of the stream. The caller closes the stream.
func (c *Conn) Open(ctx context.Context, ask *agentv1.RelayHeader) (*Stream, error) {
	b, err := proto.Marshal(ask)
	if err != nil {
		return nil, fmt.Errorf("encode relay header: %w", err)
	}
	if len(b) > maxData {
		return nil, fmt.Errorf("relay header of %d bytes is over the limit of %d", len(b), maxData)
	}
	s, err := c.ask(b)
	if err != nil {
		return nil, err
	}
	defer c.waited()
	select {
	case status := <-s.answered:
		if status != agentv1.RelayStatus_RELAY_STATUS_OK {
			c.forget(s)
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

func (c *Conn) ask(b []byte) (*Stream, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.err != nil:
		return nil, c.err
	case c.retired || c.last == 1<<32-1:
		return nil, ErrConnLost
	case len(c.streams) >= maxStreams:
		return nil, ErrTooManyStreams
	}
	c.last++
	s := newStream(c, c.last)
	s.answered = make(chan agentv1.RelayStatus, 1)
	c.streams[s.id] = s
	c.waits()
	c.frame(s.id, open, b)
	c.owes()
	c.flush()
	return s, nil
}

// remove forgets a stream; c.mu is held.
func (c *Conn) remove(s *Stream) {
	if c.streams[s.id] == s {
		delete(c.streams, s.id)
		c.grown -= s.grown
		c.settle()
	}
}

func (c *Conn) forget(s *Stream) {
	c.mu.Lock()
	c.remove(s)
	c.mu.Unlock()
}

func (c *Conn) find(id uint32) *Stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.heard = true
	return c.streams[id]
}

// data takes what has come for a stream.
func (c *Conn) data(id uint32, b []byte) error {
	if s := c.find(id); s != nil {
		return s.receive(b)
	}
	return c.say(id, reset, nil)
}

// control takes a frame of another kind.
func (c *Conn) control(h header, payload []byte) error {
	if h.kind == open {
		return c.accepts(h.stream, payload)
	}
	if h.stream == nobody && h.kind == reset {
		return c.pong()
	}
	s := c.find(h.stream)
	if s == nil {
		return nil // it is over here
	}
	switch h.kind {
	case answer:
		select {
		case s.answered <- agentv1.RelayStatus(payload[0]): // never for a stream that was not asked for
		default:
			return fmt.Errorf("%w: an answer to nothing", errFrame)
		}
	case fin:
		return s.finished()
	case reset:
		c.forget(s)
		s.cut(errReset)
	case window:
		return s.grant(binary.BigEndian.Uint32(payload))
	}
	return nil
}

// accepts opens what a stream is to lead to.
func (c *Conn) accepts(id uint32, payload []byte) error {
	ask := new(agentv1.RelayHeader)
	if err := proto.Unmarshal(payload, ask); err != nil {
		return fmt.Errorf("decode relay header: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.accept == nil || id <= c.last {
		return fmt.Errorf("%w: a stream that was not to be opened", errFrame)
	}
	c.last = id
	if c.err != nil || c.retired {
		return nil
	}
	s := newStream(c, id)
	c.streams[id] = s
	c.joined.Go(func() {
		local, status := c.accept(ask)
		if local == nil {
			c.forget(s)
			_ = c.say(id, answer, []byte{byte(status)})
			return
		}
		s.join(netx.Wrap(local))
	})
	return nil
}
