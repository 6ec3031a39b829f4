package http2

import (
	"errors"
	"io"
	"math"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

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
		s.resetByUs.add(e.StreamID)
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
		if err := s.idle(id); err != nil || s.way != nil {
			return err
		}
		return s.headersAfterEnd(id)
	case *http2.RSTStreamFrame:
		if h == nil {
			return s.idle(id)
		}
		h.resetByPeer = true
		h.wasReset(f.ErrCode)
		return nil
	case *http2.PriorityFrame:
		return s.priority(h, f)
	default:
		return nil // a frame of an extension (RFC 9113, section 5.5)
	}
}

// priority checks a PRIORITY frame. The priority itself is ignored (RFC 9113, section 5.3.2), but a
// stream that depends on itself is an error (RFC 7540, section 5.3.1). For a stream that is still
// idle it is an error of the connection, because RST_STREAM must not be sent for an idle stream.
func (s *side) priority(h *half, f *http2.PriorityFrame) error {
	switch {
	case f.StreamDep != f.StreamID:
		return nil
	case h != nil:
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	}
	return s.idle(f.StreamID)
}

// headersAfterEnd judges a HEADERS frame of a client for a stream that has ended, or that the client
// skipped. Trailers may cross a reset of ours. All else is an error of the connection (RFC 9113,
// section 5.1.1).
func (s *side) headersAfterEnd(id uint32) error {
	if s.finishing || s.resetByUs.has(id) {
		return nil
	}
	return http2.ConnectionError(http2.ErrCodeProtocol)
}

// dataAfterEnd judges a DATA frame for a stream that has ended. A part of a body may cross a reset
// of ours. Otherwise the client ended the stream itself (RFC 9113, section 5.1).
func (s *side) dataAfterEnd(id uint32) error {
	if err := s.idle(id); err != nil {
		return err
	}
	if s.way != nil || s.finishing || s.resetByUs.has(id) {
		return nil
	}
	return http2.StreamError{StreamID: id, Code: http2.ErrCodeStreamClosed}
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
		s.acknowledged()
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
	if s.way == s.sw.config.Host {
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
	if s.way == s.sw.config.App && s.way == s.sw.config.Host {
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
	s.held += n
	s.sw.holds(n)
	if h == nil {
		s.credit(n)
		return s.dataAfterEnd(f.StreamID)
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
	if h.given -= n; h.given+s.late < 0 {
		s.credit(n)
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeFlowControl}
	}
	h.hold(n)
	if (s.parked > parkedMost && h.parks()) || s.sw.greedy() {
		h.credit(n)
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeEnhanceYourCalm}
	}
	h.credit(n - int64(len(body))) // padding
	return h.body(body, f.StreamEnded())
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
