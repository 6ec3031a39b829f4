package http2

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"math"
	"net"
	"slices"
	"strings"
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
	halves    int    // streams that use it
	begun     int    // those of a server that it knows of
	copied    int    // bytes of copies that wait
	next      uint32 // stream to begin
	last      uint32 // stream that the client began
	window    int64  // what may be sent
	initial   int64  // window of a stream
	most      uint32 // streams at once
	frame     int64  // the largest to send
	given     int64  // what may be received
	owed      int64  // received and passed on, and not yet said so
	settled   bool   // the first settings have come
	left      bool   // the client was asked to leave
	going     bool   // takes no new requests
	finishing bool   // ends when there is nothing more to write
	over      bool
	err       error // how it ended
}

func (w *Switch) newSide(way *Way) *side {
	s := &side{sw: w, way: way, streams: map[uint32]*half{}, next: 1, window: defaultWindow, initial: defaultWindow, most: streamsUnasked, frame: defaultFrame, given: clientWindow}
	if way != nil {
		s.given = serverWindow
	}
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
	s.first(func(s *side) error {
		if _, err := io.WriteString(s.out, http2.ClientPreface); err != nil {
			return err
		}
		if err := s.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush, Val: 0}, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(s.streamWindow())}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: largestFrame}); err != nil {
			return err
		}
		return s.framer.WriteWindowUpdate(0, serverWindow-defaultWindow)
	})
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
	app := s.way == s.sw.config.App
	if app {
		s.sw.greet(nil)
	}
	unsent := s.unsent()
	if app && (len(s.streams) > 0 || len(unsent) > 0 || s.settled) && s.sw.lostApp(s) {
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

// read takes frames until the connection ends or breaks the rules.
func (s *side) read() {
	w := s.sw
	if s.way == nil {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(s.in, preface); err != nil || string(preface) != http2.ClientPreface {
			return
		}
	}
	for {
		f, err := s.framer.ReadFrame()
		w.mu.Lock()
		if err == nil {
			err = s.take(f)
		}
		var stream http2.StreamError
		var connection http2.ConnectionError
		switch {
		case errors.As(err, &stream):
			s.broke(stream)
			err = nil
		case errors.As(err, &connection), errors.Is(err, http2.ErrFrameTooLarge):
			code := http2.ErrCode(connection)
			if errors.Is(err, http2.ErrFrameTooLarge) {
				code = http2.ErrCodeFrameSize
			}
			last := s.last
			s.say(func(s *side) error { return s.framer.WriteGoAway(last, code, nil) })
			s.err = err // whatever became of what was written
		}
		if s.err == nil {
			s.err = err
		}
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// foreign says whether the other end has said something that is not HTTP/2, and so understood nothing.
func (s *side) foreign() bool {
	var broken http2.ConnectionError
	return !s.settled && (errors.Is(s.err, http2.ErrFrameTooLarge) || errors.As(s.err, &broken))
}

// broke ends a stream whose other end broke the rules.
func (s *side) broke(e http2.StreamError) {
	h := s.streams[e.StreamID]
	if h == nil && s.way == nil && e.StreamID%2 == 1 && e.StreamID > s.last {
		s.last = e.StreamID
	}
	if h == nil {
		s.say(func(s *side) error { return s.framer.WriteRSTStream(e.StreamID, e.Code) })
		return
	}
	h.refuse(e.Code)
}

// take understands a frame.
func (s *side) take(f http2.Frame) error {
	if _, ok := f.(*http2.SettingsFrame); !ok && !s.settled {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if len(s.said) > maxSaid {
		return errTooMuch
	}
	id := f.Header().StreamID
	h := s.streams[id]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return s.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			data := f.Data
			s.say(func(s *side) error { return s.framer.WritePing(true, data) })
		}
		return nil
	case *http2.GoAwayFrame:
		s.goaway(f)
		return nil
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case *http2.WindowUpdateFrame:
		return s.widen(h, f)
	case *http2.DataFrame:
		return s.data(h, f)
	case *http2.MetaHeadersFrame:
		switch {
		case h != nil:
			return h.fields(f)
		case s.way == nil && id > s.last:
			return s.sw.opens(f)
		}
		return s.idle(id) // else one that has ended
	case *http2.RSTStreamFrame:
		if h == nil {
			return s.idle(id)
		}
		h.wasReset(f.ErrCode)
		return nil
	default:
		return nil // priorities, and what is not known
	}
}

// idle says whether a stream has not begun: then nothing may come on it.
func (s *side) idle(id uint32) error {
	if (s.way == nil && id > s.last) || (s.way != nil && id >= s.next) || id%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

func (s *side) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if !s.settled {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		return nil
	}
	if f.HasDuplicates() {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	all := map[http2.SettingID]uint32{}
	err := f.ForeachSetting(func(one http2.Setting) error {
		all[one.ID] = one.Val
		return one.Valid()
	})
	if err != nil {
		return err
	}
	if v, ok := all[http2.SettingMaxConcurrentStreams]; ok {
		s.most = v
	} else if !s.settled {
		s.most = math.MaxUint32
	}
	s.admit()
	if v, ok := all[http2.SettingInitialWindowSize]; ok {
		change := int64(v) - s.initial
		s.initial = int64(v)
		for _, h := range s.streams {
			if h.window += change; h.window > math.MaxInt32 {
				return http2.ConnectionError(http2.ErrCodeFlowControl)
			}
			h.schedule()
		}
	}
	if v, ok := all[http2.SettingMaxFrameSize]; ok {
		s.frame = min(int64(v), largestFrame)
	}
	s.settled = true
	if s.way == s.sw.config.App {
		s.sw.greet(all)
	}
	table, resize := all[http2.SettingHeaderTableSize]
	s.say(func(s *side) error {
		if resize {
			s.fields.SetMaxDynamicTableSizeLimit(min(table, defaultTable))
			s.fields.SetMaxDynamicTableSize(min(table, defaultTable))
		}
		return s.framer.WriteSettingsAck()
	})
	return nil
}

// goaway is when a server asks for another connection, or the client says that it leaves.
func (s *side) goaway(f *http2.GoAwayFrame) {
	if s.way == nil {
		return
	}
	s.depart()
	for id, b := range s.streams {
		if id > f.LastStreamID {
			b.wasReset(http2.ErrCodeRefusedStream) // it was not looked at
		}
	}
	for _, b := range s.unsent() {
		b.move(s.way)
	}
	if s.way == s.sw.config.App {
		s.sw.leave()
	}
}

// widen is when the other end takes more.
func (s *side) widen(h *half, f *http2.WindowUpdateFrame) error {
	n := int64(f.Increment)
	if f.StreamID == 0 {
		if s.window += n; s.window > math.MaxInt32 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		s.ready = append(s.ready, s.full...)
		s.full = nil
		s.wake.Signal()
		return nil
	}
	if h == nil {
		return s.idle(f.StreamID)
	}
	if h.window += n; h.window > math.MaxInt32 {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeFlowControl}
	}
	h.schedule()
	return nil
}

// data takes a part of a body.
func (s *side) data(h *half, f *http2.DataFrame) error {
	n := int64(f.Length)
	if s.given -= n; s.given < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	if h == nil {
		s.credit(n)
		return s.idle(f.StreamID)
	}
	if h.heard {
		s.credit(n)
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeStreamClosed}
	}
	body := f.Data()
	if h.left >= 0 {
		if h.left -= int64(len(body)); h.left < 0 || (f.StreamEnded() && h.left > 0) {
			s.credit(n)
			return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeProtocol} // not as long as it said
		}
	}
	if h.given -= n; h.given < 0 {
		s.credit(n)
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeFlowControl}
	}
	h.credit(n - int64(len(body))) // padding
	return h.body(body, f.StreamEnded())
}

// credit lets the other end send as much more.
func (s *side) credit(n int64) {
	all := int64(clientWindow)
	if s.way != nil {
		all = serverWindow
	}
	if s.owed += n; s.owed < all/16 {
		return
	}
	n, s.owed = s.owed, 0
	s.given += n
	s.say(func(s *side) error { return s.framer.WriteWindowUpdate(0, uint32(n)) })
}

// admit begins streams that had to wait.
func (s *side) admit() {
	s.waiting = slices.DeleteFunc(s.waiting, func(h *half) bool { return h.closed })
	n := 0
	for n < len(s.waiting) && uint32(s.begun+n) < s.most {
		n++
	}
	if n > 0 {
		s.ready = append(s.ready, s.waiting[:n]...)
		s.waiting = slices.Delete(s.waiting, 0, n)
		s.wake.Signal()
	}
}

// connection says whether a field belongs to a connection of HTTP/1, which no message of HTTP/2 may have.
func connection(f hpack.HeaderField) bool {
	switch f.Name {
	case "connection", "proxy-connection", "transfer-encoding", "upgrade", "keep-alive":
		return true
	case "te":
		return !strings.EqualFold(f.Value, "trailers")
	}
	return false
}
