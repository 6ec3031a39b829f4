package http2

import (
	"bufio"
	"bytes"
	"context"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	defaultWindow = 64<<10 - 1 // RFC 9113, 6.9.2
	defaultTable  = 4096
	// streamsBeforeSettings is how many requests a server gets before its settings arrive. RFC
	// 9113, section 6.5.2, recommends no lower limit.
	streamsBeforeSettings = 100
	defaultFrame          = 16 << 10 // every peer accepts it
	largestFrame          = 64 << 10 // the largest that the agent accepts and sends
	readBuffer            = 8 << 10
	writeBuffer           = 16 << 10
	// maxControl bounds the control frames that wait. A peer that reads none of so many is hostile.
	maxControl = 1 << 14
)

var errTooMuch = http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)

// conn is one connection: the client's, or one to a backend. Router.mu guards it, except for what
// belongs to one goroutine.
type conn struct {
	router  *Router
	backend *Backend // nil for the client's connection
	ctx     context.Context
	cancel  context.CancelFunc

	netConn net.Conn      // nil until the dial has succeeded
	in      *bufio.Reader // only receiveLoop uses it
	framer  *http2.Framer // receiveLoop reads from it, sendLoop writes to it
	w       frameWriter
	refusal http2.ErrCode // the server's code for a request that it has not processed

	queue   sendQueue
	streams streamTable
	limits  sendLimits
	recv    receiveWindow
	copied  int // bytes of copies that wait to be sent
	state   connState
}

// frameWriter encodes frames. Only sendLoop uses it.
type frameWriter struct {
	out    *bufio.Writer
	fields *hpack.Encoder
	block  bytes.Buffer
}

// sendQueue holds what waits to be sent.
type sendQueue struct {
	wake    sync.Cond           // signalled when there is something to send
	control []func(*conn) error // writes frames of the connection itself
	ready   []*halfStream       // streams with something to send
	blocked []*halfStream       // the same, once the connection has a window again
	waiting []*halfStream       // streams that have not begun, because the server allows no more at once
}

// streamTable holds the streams of a connection.
type streamTable struct {
	byID      map[uint32]*halfStream // streams that have a number
	users     int                    // streams that use the connection, with a number or without
	open      int                    // streams of a backend that have begun and not ended
	closed    int                    // streams that closed since the last sweep of the queue
	nextID    uint32                 // of the next stream to a backend
	lastID    uint32                 // of the newest stream of the client
	resetByUs recentIDs              // streams of the client that were reset before the client's end
}

// sendLimits is what the other end allows.
type sendLimits struct {
	window        int64  // of the connection, in bytes
	initialWindow int64  // of a new stream, in bytes
	maxStreams    uint32 // at once
	maxFrame      int64  // bytes of a frame's payload
}

// connState is where a connection is in its life.
type connState struct {
	settled    bool // the first SETTINGS frame has arrived
	goawaySent bool // the client was asked to leave
	draining   bool // takes no new requests
	finishing  bool // ends when everything that can be sent is sent
	ended      bool
	err        error // why it ended
}

func (r *Router) newConn(backend *Backend) *conn {
	c := &conn{
		router: r, backend: backend, recv: r.newReceiveWindow(backend),
		streams: streamTable{byID: map[uint32]*halfStream{}, nextID: 1},
		limits: sendLimits{
			window:        defaultWindow,
			initialWindow: defaultWindow,
			maxStreams:    streamsBeforeSettings,
			maxFrame:      defaultFrame,
		},
	}
	c.ctx, c.cancel = context.WithCancel(r.ctx)
	c.queue.wake.L = &r.mu
	return c
}

// refuser is a connection whose server uses a code of its own for a request that it has not
// processed.
type refuser interface{ Refusal() http2.ErrCode }

// attach makes nc the network connection.
func (c *conn) attach(nc net.Conn) {
	c.netConn = nc
	c.refusal = http2.ErrCodeRefusedStream
	if r, ok := nc.(refuser); ok {
		c.refusal = r.Refusal()
	}
	c.w.out = bufio.NewWriterSize(nc, writeBuffer)
	c.w.fields = hpack.NewEncoder(&c.w.block)
	c.in = bufio.NewReaderSize(nc, readBuffer)
	c.framer = http2.NewFramer(c.w.out, c.in)
	c.framer.SetReuseFrames()
	c.framer.ReadMetaHeaders = hpack.NewDecoder(defaultTable, nil)
	c.framer.MaxHeaderListSize = maxFields
	c.framer.SetMaxReadFrameSize(largestFrame)
}

// run opens the connection to a backend and serves it until it ends. It locks mu itself.
func (c *conn) run() {
	defer c.cancel()
	nc, err := c.backend.Dial(c.ctx)
	r := c.router
	r.mu.Lock()
	if err != nil {
		c.connectionLost()
		r.mu.Unlock()
		return
	}
	c.attach(nc)
	c.sendFirstSettings(0, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	r.mu.Unlock()
	stop := context.AfterFunc(c.ctx, func() { _ = nc.Close() })
	defer stop()
	over := context.AfterFunc(c.backend.Life, c.backendOver)
	defer over()
	var writing sync.WaitGroup
	writing.Go(func() {
		if c.sendLoop() {
			_ = nc.Close()
		}
	})
	c.receiveLoop()
	r.mu.Lock()
	c.finish()
	r.mu.Unlock()
	writing.Wait()
	_ = nc.Close()
	r.mu.Lock()
	c.connectionLost()
	r.mu.Unlock()
}

// backendOver drains the connection after the Life of its backend. It locks mu itself.
func (c *conn) backendOver() {
	c.router.mu.Lock()
	defer c.router.mu.Unlock()
	c.drain()
}

// drain takes no new requests, and ends the connection when all requests have ended or drainTimeout
// has passed.
func (c *conn) drain() {
	c.refuseNew()
	timer := time.AfterFunc(drainTimeout, c.cancel)
	context.AfterFunc(c.ctx, func() { timer.Stop() })
}

// refuseNew makes the connection take no new requests.
func (c *conn) refuseNew() {
	c.state.draining = true
	if c.router.backends[c.backend] == c {
		delete(c.router.backends, c.backend)
	}
	c.finishIfUnused()
}

// finishIfUnused ends a connection that takes no new requests and has none.
func (c *conn) finishIfUnused() {
	if c.state.draining && c.streams.users == 0 {
		c.finish()
	}
}

// finish ends the connection when everything that can be sent is sent.
func (c *conn) finish() {
	if c.state.finishing {
		return
	}
	c.state.finishing = true
	if c.netConn == nil {
		c.cancel() // the dial
		return
	}
	_ = c.netConn.SetWriteDeadline(time.Now().Add(lingering))
	c.queue.wake.Signal()
}

// connectionLost handles the end of a backend's connection, or the failure of its dial.
func (c *conn) connectionLost() {
	c.state.ended = true
	c.refuseNew()
	delete(c.router.conns, c)
	if c.backend == c.router.config.Host {
		c.router.sendClientSettings(nil)
	}
	unsent := c.unsent()
	if c.backend == c.router.config.App && (len(c.streams.byID) > 0 || len(unsent) > 0 || c.state.settled) &&
		c.router.followApp(c) {
		return
	}
	for _, b := range c.streams.byID {
		b.connectionLost()
	}
	for _, b := range unsent {
		if b.copy {
			b.connectionLost()
		} else {
			b.moveTo(nil)
		}
	}
}

// unsent returns the streams that have not begun on the connection.
func (c *conn) unsent() []*halfStream {
	var all []*halfStream
	for _, b := range slices.Concat(c.queue.waiting, c.queue.ready) {
		if b.id == 0 && !b.closed {
			all = append(all, b)
		}
	}
	c.queue.waiting = nil
	return all
}

// sendControl queues a frame of the connection itself.
func (c *conn) sendControl(frame func(*conn) error) {
	if c.state.ended {
		return
	}
	c.queue.control = append(c.queue.control, frame)
	c.queue.wake.Signal()
}

// sendControlFirst queues a frame before all others.
func (c *conn) sendControlFirst(frame func(*conn) error) {
	c.queue.control = slices.Insert(c.queue.control, 0, frame)
	c.queue.wake.Signal()
}

// admit lets waiting streams begin as far as the server's limit allows.
func (c *conn) admit() {
	n, begin := 0, 0
	for ; n < len(c.queue.waiting) && uint32(c.streams.open+begin) < c.limits.maxStreams; n++ {
		if !c.queue.waiting[n].closed {
			begin++
		}
	}
	if n > 0 {
		c.queue.ready = append(c.queue.ready, c.queue.waiting[:n]...)
		c.queue.waiting = slices.Delete(c.queue.waiting, 0, n)
		c.queue.wake.Signal()
	}
}

// sweep removes closed streams from the queues. It does so only now and then, because there may be
// many.
func (c *conn) sweep() {
	if c.streams.closed++; c.streams.closed <= 64+(len(c.queue.ready)+len(c.queue.blocked)+len(c.queue.waiting))/2 {
		return
	}
	c.streams.closed = 0
	gone := func(h *halfStream) bool { return h.closed }
	c.queue.ready, c.queue.blocked, c.queue.waiting = slices.DeleteFunc(c.queue.ready,
		gone), slices.DeleteFunc(c.queue.blocked, gone), slices.DeleteFunc(c.queue.waiting, gone)
}
