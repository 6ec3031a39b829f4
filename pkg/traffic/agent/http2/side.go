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

// side is one connection: the client's, or one to a server.
type side struct {
	sw      *Switch
	way     *Way // nil for the client's
	ctx     context.Context
	cancel  context.CancelFunc
	conn    net.Conn // nil until it is there
	in      *bufio.Reader
	framer  *http2.Framer
	refusal http2.ErrCode // says that a request was not looked at

	// Of the goroutine that writes.
	out    *bufio.Writer
	fields *hpack.Encoder
	block  bytes.Buffer

	wake      sync.Cond // there is something to write
	said      []func(*side) error
	ready     []*half // with something to write
	full      []*half // likewise, once the connection has a window again
	waiting   []*half // not begun, because the server takes no more at once
	streams   map[uint32]*half
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

func (w *Switch) newSide(way *Way) *side {
	s := &side{sw: w, way: way, streams: map[uint32]*half{}, next: 1, window: defaultWindow, initial: defaultWindow, most: streamsUnasked, frame: defaultFrame}
	s.receives = w.receives(way)
	s.ctx, s.cancel = context.WithCancel(w.ctx)
	s.wake.L = &w.mu
	return s
}

// refuser is a connection whose server has a code of its own for a request that it has not looked at.
type refuser interface{ Refusal() http2.ErrCode }

// use makes c the side's connection.
func (s *side) use(c net.Conn) {
	s.conn = c
	s.refusal = http2.ErrCodeRefusedStream
	if r, ok := c.(refuser); ok {
		s.refusal = r.Refusal()
	}
	s.out = bufio.NewWriterSize(c, writeBuffer)
	s.fields = hpack.NewEncoder(&s.block)
	s.in = bufio.NewReaderSize(c, readBuffer)
	s.framer = http2.NewFramer(s.out, s.in)
	s.framer.SetReuseFrames()
	s.framer.ReadMetaHeaders = hpack.NewDecoder(defaultTable, nil)
	s.framer.MaxHeaderListSize = maxFields
	s.framer.SetMaxReadFrameSize(largestFrame)
}

// run opens a side to a server and serves it to its end.
func (s *side) run() {
	defer s.cancel()
	c, err := s.way.Dial(s.ctx)
	w := s.sw
	w.mu.Lock()
	if err != nil {
		s.lost()
		w.mu.Unlock()
		return
	}
	s.use(c)
	s.begins(0, http2.Setting{ID: http2.SettingEnablePush, Val: 0})
	w.mu.Unlock()
	stop := context.AfterFunc(s.ctx, func() { _ = c.Close() })
	defer stop()
	over := context.AfterFunc(s.way.Over, s.wayOver)
	defer over()
	var writing sync.WaitGroup
	writing.Go(func() {
		if s.write() {
			_ = c.Close()
		}
	})
	s.read()
	w.mu.Lock()
	s.finish()
	w.mu.Unlock()
	writing.Wait()
	_ = c.Close()
	w.mu.Lock()
	s.lost()
	w.mu.Unlock()
}

// wayOver ends a side whose way is over.
func (s *side) wayOver() {
	s.sw.mu.Lock()
	defer s.sw.mu.Unlock()
	s.retire()
}

// retire takes no new requests, and ends once those that there are have ended, or in time.
func (s *side) retire() {
	s.depart()
	timer := time.AfterFunc(drainTimeout, s.cancel)
	context.AfterFunc(s.ctx, func() { timer.Stop() })
}

// depart takes no new requests.
func (s *side) depart() {
	s.going = true
	if s.sw.ways[s.way] == s {
		delete(s.sw.ways, s.way)
	}
	s.empty()
}

// empty ends a side that is not needed any more.
func (s *side) empty() {
	if s.going && s.halves == 0 {
		s.finish()
	}
}

// finish ends the connection when what can be written is.
func (s *side) finish() {
	if s.finishing {
		return
	}
	s.finishing = true
	if s.conn == nil {
		s.cancel() // the dial
		return
	}
	_ = s.conn.SetWriteDeadline(time.Now().Add(lingering))
	s.wake.Signal()
}

// lost is when a server's connection has ended, or could not be had.
func (s *side) lost() {
	s.over = true
	s.depart()
	delete(s.sw.sides, s)
	if s.way == s.sw.config.Host {
		s.sw.greet(nil)
	}
	unsent := s.unsent()
	if s.way == s.sw.config.App && (len(s.streams) > 0 || len(unsent) > 0 || s.settled) && s.sw.lostApp(s) {
		return
	}
	for _, b := range s.streams {
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
func (s *side) unsent() []*half {
	var all []*half
	for _, b := range slices.Concat(s.waiting, s.ready) {
		if b.id == 0 && !b.closed {
			all = append(all, b)
		}
	}
	s.waiting = nil
	return all
}

// say has a frame written that is the connection's own.
func (s *side) say(frame func(*side) error) {
	if s.over {
		return
	}
	s.said = append(s.said, frame)
	s.wake.Signal()
}

// first has it written before all others.
func (s *side) first(frame func(*side) error) {
	s.said = slices.Insert(s.said, 0, frame)
	s.wake.Signal()
}

// admit begins streams that had to wait.
func (s *side) admit() {
	n, begin := 0, 0
	for ; n < len(s.waiting) && uint32(s.begun+begin) < s.most; n++ {
		if !s.waiting[n].closed {
			begin++
		}
	}
	if n > 0 {
		s.ready = append(s.ready, s.waiting[:n]...)
		s.waiting = slices.Delete(s.waiting, 0, n)
		s.wake.Signal()
	}
}

// sweep forgets streams that have closed before they were written. Not each time: there may be many.
func (s *side) sweep() {
	if s.closed++; s.closed <= 64+(len(s.ready)+len(s.full)+len(s.waiting))/2 {
		return
	}
	s.closed = 0
	gone := func(h *half) bool { return h.closed }
	s.ready, s.full, s.waiting = slices.DeleteFunc(s.ready, gone), slices.DeleteFunc(s.full, gone), slices.DeleteFunc(s.waiting, gone)
}
