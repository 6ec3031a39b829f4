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
	// streamsUnasked is how many requests a server gets before it has said how many it takes (RFC 9113, 6.5.2 recommends no less).
	streamsUnasked = 100
	defaultFrame   = 16 << 10 // what everyone takes
	largestFrame   = 64 << 10 // that is taken and sent here
	readBuffer     = 8 << 10
	writeBuffer    = 16 << 10
	// maxSaid bounds the frames that wait for a connection itself. Who does not take them means ill.
	maxSaid = 1 << 14
)

var errTooMuch = http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)

// conn is one connection: the client'c, or one to a server.
type conn struct {
	router  *Router
	backend *Backend // nil for the client's
	ctx     context.Context
	cancel  context.CancelFunc
	netConn net.Conn // nil until it is there
	in      *bufio.Reader
	framer  *http2.Framer
	refusal http2.ErrCode // says that a request was not looked at

	// Of the goroutine that writes.
	out    *bufio.Writer
	fields *hpack.Encoder
	block  bytes.Buffer

	wake      sync.Cond // there is something to write
	said      []func(*conn) error
	ready     []*halfStream // with something to write
	full      []*halfStream // likewise, once the connection has a window again
	waiting   []*halfStream // not begun, because the server takes no more at once
	streams   map[uint32]*halfStream
	halves    int       // streams that use it
	closed    int       // streams that closed since those that wait were swept
	begun     int       // those of a server that it knows of
	copied    int       // bytes of copies that wait
	next      uint32    // stream to begin
	last      uint32    // stream that the client began
	resetByUs recentIDs // streams of the client that ended before the client had sent all
	window    int64     // what may be sent
	initial   int64     // window of a stream
	most      uint32    // streams at once
	frame     int64     // the largest to send
	receives
	settled   bool // the first settings have come
	left      bool // the client was asked to leave
	going     bool // takes no new requests
	finishing bool // ends when there is nothing more to write
	over      bool
	err       error // how it ended
}

func (r *Router) newConn(backend *Backend) *conn {
	c := &conn{router: r, backend: backend, streams: map[uint32]*halfStream{}, next: 1, window: defaultWindow, initial: defaultWindow, most: streamsUnasked, frame: defaultFrame}
	c.receives = r.receives(backend)
	c.ctx, c.cancel = context.WithCancel(r.ctx)
	c.wake.L = &r.mu
	return c
}

// refuser is a connection whose server has a code of its own for a request that it has not looked at.
type refuser interface{ Refusal() http2.ErrCode }

// use makes nc the side's connection.
func (c *conn) use(nc net.Conn) {
	c.netConn = nc
	c.refusal = http2.ErrCodeRefusedStream
	if r, ok := nc.(refuser); ok {
		c.refusal = r.Refusal()
	}
	c.out = bufio.NewWriterSize(nc, writeBuffer)
	c.fields = hpack.NewEncoder(&c.block)
	c.in = bufio.NewReaderSize(nc, readBuffer)
	c.framer = http2.NewFramer(c.out, c.in)
	c.framer.SetReuseFrames()
	c.framer.ReadMetaHeaders = hpack.NewDecoder(defaultTable, nil)
	c.framer.MaxHeaderListSize = maxFields
	c.framer.SetMaxReadFrameSize(largestFrame)
}

// run opens a side to a server and serves it to its end.
func (c *conn) run() {
	defer c.cancel()
	nc, err := c.backend.Dial(c.ctx)
	r := c.router
	r.mu.Lock()
	if err != nil {
		c.lost()
		r.mu.Unlock()
		return
	}
	c.use(nc)
	c.begins(0, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	r.mu.Unlock()
	stop := context.AfterFunc(c.ctx, func() { _ = nc.Close() })
	defer stop()
	over := context.AfterFunc(c.backend.Over, c.wayOver)
	defer over()
	var writing sync.WaitGroup
	writing.Go(func() {
		if c.write() {
			_ = nc.Close()
		}
	})
	c.read()
	r.mu.Lock()
	c.finish()
	r.mu.Unlock()
	writing.Wait()
	_ = nc.Close()
	r.mu.Lock()
	c.lost()
	r.mu.Unlock()
}

// wayOver ends a side whose way is over.
func (c *conn) wayOver() {
	c.router.mu.Lock()
	defer c.router.mu.Unlock()
	c.retire()
}

// retire takes no new requests, and ends once those that there are have ended, or in time.
func (c *conn) retire() {
	c.depart()
	timer := time.AfterFunc(drainTimeout, c.cancel)
	context.AfterFunc(c.ctx, func() { timer.Stop() })
}

// depart takes no new requests.
func (c *conn) depart() {
	c.going = true
	if c.router.backends[c.backend] == c {
		delete(c.router.backends, c.backend)
	}
	c.empty()
}

// empty ends a side that is not needed any more.
func (c *conn) empty() {
	if c.going && c.halves == 0 {
		c.finish()
	}
}

// finish ends the connection when what can be written is.
func (c *conn) finish() {
	if c.finishing {
		return
	}
	c.finishing = true
	if c.netConn == nil {
		c.cancel() // the dial
		return
	}
	_ = c.netConn.SetWriteDeadline(time.Now().Add(lingering))
	c.wake.Signal()
}

// lost is when a server's connection has ended, or could not be had.
func (c *conn) lost() {
	c.over = true
	c.depart()
	delete(c.router.conns, c)
	if c.backend == c.router.config.Host {
		c.router.greet(nil)
	}
	unsent := c.unsent()
	if c.backend == c.router.config.App && (len(c.streams) > 0 || len(unsent) > 0 || c.settled) && c.router.lostApp(c) {
		return
	}
	for _, b := range c.streams {
		b.lost()
	}
	for _, b := range unsent {
		if b.copy {
			b.lost()
		} else {
			b.move(nil)
		}
	}
}

// unsent are the streams that were not begun yet.
func (c *conn) unsent() []*halfStream {
	var all []*halfStream
	for _, b := range slices.Concat(c.waiting, c.ready) {
		if b.id == 0 && !b.closed {
			all = append(all, b)
		}
	}
	c.waiting = nil
	return all
}

// say has a frame written that is the connection's own.
func (c *conn) say(frame func(*conn) error) {
	if c.over {
		return
	}
	c.said = append(c.said, frame)
	c.wake.Signal()
}

// first has it written before all others.
func (c *conn) first(frame func(*conn) error) {
	c.said = slices.Insert(c.said, 0, frame)
	c.wake.Signal()
}

// admit begins streams that had to wait.
func (c *conn) admit() {
	n, begin := 0, 0
	for ; n < len(c.waiting) && uint32(c.begun+begin) < c.most; n++ {
		if !c.waiting[n].closed {
			begin++
		}
	}
	if n > 0 {
		c.ready = append(c.ready, c.waiting[:n]...)
		c.waiting = slices.Delete(c.waiting, 0, n)
		c.wake.Signal()
	}
}

// sweep forgets streams that have closed before they were written. Not each time: there may be many.
func (c *conn) sweep() {
	if c.closed++; c.closed <= 64+(len(c.ready)+len(c.full)+len(c.waiting))/2 {
		return
	}
	c.closed = 0
	gone := func(h *halfStream) bool { return h.closed }
	c.ready, c.full, c.waiting = slices.DeleteFunc(c.ready, gone), slices.DeleteFunc(c.full, gone), slices.DeleteFunc(c.waiting, gone)
}
