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
func (c *conn) read() {
	r := c.router
	if c.backend == nil {
		preface := make([]byte, len(http2.ClientPreface))
		if _, err := io.ReadFull(c.in, preface); err != nil || string(preface) != http2.ClientPreface {
			return
		}
	}
	for {
		f, err := c.framer.ReadFrame()
		r.mu.Lock()
		if err == nil {
			err = c.take(f)
		}
		var stream http2.StreamError
		var connection http2.ConnectionError
		switch {
		case errors.As(err, &stream):
			c.broke(stream)
			err = nil
		case errors.As(err, &connection), errors.Is(err, http2.ErrFrameTooLarge):
			code := http2.ErrCode(connection)
			if errors.Is(err, http2.ErrFrameTooLarge) {
				code = http2.ErrCodeFrameSize
			}
			last := c.last
			c.say(func(c *conn) error { return c.framer.WriteGoAway(last, code, nil) })
			c.err = err // whatever became of what was written
		}
		if c.err == nil {
			c.err = err
		}
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// foreign says whether the other end has said something that is not HTTP/2, and so understood nothing.
func (c *conn) foreign() bool {
	var broken http2.ConnectionError
	return !c.settled && (errors.Is(c.err, http2.ErrFrameTooLarge) || errors.As(c.err, &broken))
}

// broke ends a stream whose other end broke the rules.
func (c *conn) broke(e http2.StreamError) {
	h := c.streams[e.StreamID]
	if h == nil && c.backend == nil && e.StreamID%2 == 1 && e.StreamID > c.last {
		c.last = e.StreamID
		c.resetByUs.add(e.StreamID)
	}
	if h == nil {
		c.say(func(c *conn) error { return c.framer.WriteRSTStream(e.StreamID, e.Code) })
		return
	}
	h.refuse(e.Code)
}

// take understands a frame.
func (c *conn) take(f http2.Frame) error {
	if _, ok := f.(*http2.SettingsFrame); !ok && !c.settled {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if len(c.said) > maxSaid {
		return errTooMuch
	}
	id := f.Header().StreamID
	h := c.streams[id]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return c.settings(f)
	case *http2.PingFrame:
		if !f.IsAck() {
			data := f.Data
			c.say(func(c *conn) error { return c.framer.WritePing(true, data) })
		}
		return nil
	case *http2.GoAwayFrame:
		c.goaway(f)
		return nil
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case *http2.WindowUpdateFrame:
		return c.widen(h, f)
	case *http2.DataFrame:
		return c.data(h, f)
	case *http2.MetaHeadersFrame:
		switch {
		case h != nil:
			return h.fields(f)
		case c.backend == nil && id > c.last:
			return c.router.opens(f)
		}
		if err := c.idle(id); err != nil || c.backend != nil {
			return err
		}
		return c.headersAfterEnd(id)
	case *http2.RSTStreamFrame:
		if h == nil {
			return c.idle(id)
		}
		h.resetByPeer = true
		h.wasReset(f.ErrCode)
		return nil
	case *http2.PriorityFrame:
		return c.priority(h, f)
	default:
		return nil // a frame of an extension (RFC 9113, section 5.5)
	}
}

// priority checks a PRIORITY frame. The priority itself is ignored (RFC 9113, section 5.3.2), but a
// stream that depends on itself is an error (RFC 7540, section 5.3.1). For a stream that is still
// idle it is an error of the connection, because RST_STREAM must not be sent for an idle stream.
func (c *conn) priority(h *halfStream, f *http2.PriorityFrame) error {
	switch {
	case f.StreamDep != f.StreamID:
		return nil
	case h != nil:
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	}
	return c.idle(f.StreamID)
}

// headersAfterEnd judges a HEADERS frame of a client for a stream that has ended, or that the client
// skipped. Trailers may cross a reset of ours. All else is an error of the connection (RFC 9113,
// section 5.1.1).
func (c *conn) headersAfterEnd(id uint32) error {
	if c.finishing || c.resetByUs.has(id) {
		return nil
	}
	return http2.ConnectionError(http2.ErrCodeProtocol)
}

// dataAfterEnd judges a DATA frame for a stream that has ended. A part of a body may cross a reset
// of ours. Otherwise the client ended the stream itself (RFC 9113, section 5.1).
func (c *conn) dataAfterEnd(id uint32) error {
	if err := c.idle(id); err != nil {
		return err
	}
	if c.backend != nil || c.finishing || c.resetByUs.has(id) {
		return nil
	}
	return http2.StreamError{StreamID: id, Code: http2.ErrCodeStreamClosed}
}

// idle says whether a stream has not begun: then nothing may come on it.
func (c *conn) idle(id uint32) error {
	if (c.backend == nil && id > c.last) || (c.backend != nil && id >= c.next) || id%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

func (c *conn) settings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if !c.settled {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		c.acknowledged()
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
		c.most = v
	} else if !c.settled {
		c.most = math.MaxUint32
	}
	c.admit()
	if v, ok := all[http2.SettingInitialWindowSize]; ok {
		change := int64(v) - c.initial
		c.initial = int64(v)
		for _, h := range c.streams {
			if h.window += change; h.window > math.MaxInt32 {
				return http2.ConnectionError(http2.ErrCodeFlowControl)
			}
			h.schedule()
		}
	}
	if v, ok := all[http2.SettingMaxFrameSize]; ok {
		c.frame = min(int64(v), largestFrame)
	}
	c.settled = true
	if c.backend == c.router.config.Host {
		c.router.greet(all)
	}
	table, resize := all[http2.SettingHeaderTableSize]
	c.say(func(c *conn) error {
		if resize {
			c.fields.SetMaxDynamicTableSizeLimit(min(table, defaultTable))
			c.fields.SetMaxDynamicTableSize(min(table, defaultTable))
		}
		return c.framer.WriteSettingsAck()
	})
	return nil
}

// goaway is when a server asks for another connection, or the client says that it leaves.
func (c *conn) goaway(f *http2.GoAwayFrame) {
	if c.backend == nil {
		return
	}
	c.depart()
	for id, b := range c.streams {
		if id > f.LastStreamID {
			b.wasReset(http2.ErrCodeRefusedStream) // it was not looked at
		}
	}
	for _, b := range c.unsent() {
		b.move(c.backend)
	}
	if c.backend == c.router.config.App && c.backend == c.router.config.Host {
		c.router.leave()
	}
}

// widen is when the other end takes more.
func (c *conn) widen(h *halfStream, f *http2.WindowUpdateFrame) error {
	n := int64(f.Increment)
	if f.StreamID == 0 {
		if c.window += n; c.window > math.MaxInt32 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		c.ready = append(c.ready, c.full...)
		c.full = nil
		c.wake.Signal()
		return nil
	}
	if h == nil {
		return c.idle(f.StreamID)
	}
	if h.window += n; h.window > math.MaxInt32 {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeFlowControl}
	}
	h.schedule()
	return nil
}

// data takes a part of a body.
func (c *conn) data(h *halfStream, f *http2.DataFrame) error {
	n := int64(f.Length)
	if c.given -= n; c.given < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	c.held += n
	c.router.holds(n)
	if h == nil {
		c.credit(n)
		return c.dataAfterEnd(f.StreamID)
	}
	if h.heard {
		c.credit(n)
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeStreamClosed}
	}
	body := f.Data()
	if h.left >= 0 {
		if h.left -= int64(len(body)); h.left < 0 || (f.StreamEnded() && h.left > 0) {
			c.credit(n)
			return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeProtocol} // not as long as it said
		}
	}
	if h.given -= n; h.given+c.late < 0 {
		c.credit(n)
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeFlowControl}
	}
	h.hold(n)
	if (c.parked > parkedMost && h.parks()) || c.router.greedy() {
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
