package http2

import (
	"errors"
	"io"
	"math"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// receiveLoop handles frames until the connection ends or its peer breaks the rules. It locks mu
// itself.
func (c *conn) receiveLoop() {
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
			c.streamError(stream)
			err = nil
		case errors.As(err, &connection), errors.Is(err, http2.ErrFrameTooLarge):
			code := http2.ErrCode(connection)
			if errors.Is(err, http2.ErrFrameTooLarge) {
				code = http2.ErrCodeFrameSize
			}
			last := c.streams.lastID
			c.sendControl(func(c *conn) error { return c.framer.WriteGoAway(last, code, nil) })
			c.state.err = err // it explains more than an error of sendLoop
		}
		if c.state.err == nil {
			c.state.err = err
		}
		r.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// spokeNoHTTP2 reports whether the peer has sent something other than HTTP/2, and so has understood
// nothing.
func (c *conn) spokeNoHTTP2() bool {
	var broken http2.ConnectionError
	return !c.state.settled && (errors.Is(c.state.err, http2.ErrFrameTooLarge) || errors.As(c.state.err, &broken))
}

// streamError resets a stream whose peer broke the rules.
func (c *conn) streamError(e http2.StreamError) {
	h := c.streams.byID[e.StreamID]
	if h == nil && c.backend == nil && e.StreamID%2 == 1 && e.StreamID > c.streams.lastID {
		c.streams.lastID = e.StreamID
		c.streams.resetByUs.add(e.StreamID)
	}
	if h == nil {
		c.sendControl(func(c *conn) error { return c.framer.WriteRSTStream(e.StreamID, e.Code) })
		return
	}
	h.refuse(e.Code)
}

// take handles a frame. Its error ends the stream (http2.StreamError) or the connection.
func (c *conn) take(f http2.Frame) error {
	if _, ok := f.(*http2.SettingsFrame); !ok && !c.state.settled {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if len(c.queue.control) > maxControl {
		return errTooMuch
	}
	h := c.streams.byID[f.Header().StreamID]
	switch f := f.(type) {
	case *http2.SettingsFrame:
		return c.handleSettings(f)
	case *http2.PingFrame:
		c.handlePing(f)
		return nil
	case *http2.GoAwayFrame:
		c.handleGoAway(f)
		return nil
	case *http2.PushPromiseFrame:
		return http2.ConnectionError(http2.ErrCodeProtocol)
	case *http2.WindowUpdateFrame:
		return c.handleWindowUpdate(h, f)
	case *http2.DataFrame:
		return c.handleData(h, f)
	case *http2.MetaHeadersFrame:
		return c.handleHeaders(h, f)
	case *http2.RSTStreamFrame:
		return c.handleReset(h, f)
	case *http2.PriorityFrame:
		return c.handlePriority(h, f)
	default:
		return nil // a frame of an extension (RFC 9113, section 5.5)
	}
}

func (c *conn) handlePing(f *http2.PingFrame) {
	if !f.IsAck() {
		data := f.Data
		c.sendControl(func(c *conn) error { return c.framer.WritePing(true, data) })
	}
}

func (c *conn) handleHeaders(h *halfStream, f *http2.MetaHeadersFrame) error {
	switch {
	case h != nil:
		return h.handleHeaders(f)
	case c.backend == nil && f.StreamID > c.streams.lastID:
		return c.router.openStream(f)
	}
	if err := c.checkNotIdle(f.StreamID); err != nil || c.backend != nil {
		return err
	}
	return c.headersAfterEnd(f.StreamID)
}

func (c *conn) handleReset(h *halfStream, f *http2.RSTStreamFrame) error {
	if h == nil {
		return c.checkNotIdle(f.StreamID)
	}
	h.resetByPeer = true
	h.handleReset(f.ErrCode)
	return nil
}

// handlePriority checks a PRIORITY frame. The priority itself is ignored (RFC 9113, section 5.3.2),
// but a stream that depends on itself is an error (RFC 7540, section 5.3.1). For a stream that is
// still idle it is an error of the connection, because RST_STREAM must not be sent for an idle
// stream.
func (c *conn) handlePriority(h *halfStream, f *http2.PriorityFrame) error {
	switch {
	case f.StreamDep != f.StreamID:
		return nil
	case h != nil:
		return http2.StreamError{StreamID: f.StreamID, Code: http2.ErrCodeProtocol}
	}
	return c.checkNotIdle(f.StreamID)
}

// headersAfterEnd judges a HEADERS frame of a client for a stream that has ended, or that the
// client skipped. Trailers may cross a reset of ours. All else is an error of the connection (RFC
// 9113, section 5.1.1).
func (c *conn) headersAfterEnd(id uint32) error {
	if c.state.finishing || c.streams.resetByUs.has(id) {
		return nil
	}
	return http2.ConnectionError(http2.ErrCodeProtocol)
}

// dataAfterEnd judges a DATA frame for a stream that has ended. A part of a body may cross a reset
// of ours. Otherwise the client ended the stream itself (RFC 9113, section 5.1).
func (c *conn) dataAfterEnd(id uint32) error {
	if err := c.checkNotIdle(id); err != nil {
		return err
	}
	if c.backend != nil || c.state.finishing || c.streams.resetByUs.has(id) {
		return nil
	}
	return http2.StreamError{StreamID: id, Code: http2.ErrCodeStreamClosed}
}

// checkNotIdle returns an error for a frame on a stream that has not begun.
func (c *conn) checkNotIdle(id uint32) error {
	if (c.backend == nil && id > c.streams.lastID) || (c.backend != nil && id >= c.streams.nextID) || id%2 == 0 {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	return nil
}

func (c *conn) handleSettings(f *http2.SettingsFrame) error {
	if f.IsAck() {
		if !c.state.settled {
			return http2.ConnectionError(http2.ErrCodeProtocol)
		}
		c.settingsAcknowledged()
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
	if err := c.applySettings(all); err != nil {
		return err
	}
	c.state.settled = true
	if c.backend == c.router.config.Host {
		c.router.sendClientSettings(all)
	}
	table, resize := all[http2.SettingHeaderTableSize]
	c.sendControl(func(c *conn) error {
		if resize {
			c.w.fields.SetMaxDynamicTableSizeLimit(min(table, defaultTable))
			c.w.fields.SetMaxDynamicTableSize(min(table, defaultTable))
		}
		return c.framer.WriteSettingsAck()
	})
	return nil
}

// applySettings makes the other end's settings the limits of the connection.
func (c *conn) applySettings(all map[http2.SettingID]uint32) error {
	if v, ok := all[http2.SettingMaxConcurrentStreams]; ok {
		c.limits.maxStreams = v
	} else if !c.state.settled {
		c.limits.maxStreams = math.MaxUint32
	}
	c.admit()
	if v, ok := all[http2.SettingInitialWindowSize]; ok {
		change := int64(v) - c.limits.initialWindow
		c.limits.initialWindow = int64(v)
		for _, h := range c.streams.byID {
			if h.send.window += change; h.send.window > math.MaxInt32 {
				return http2.ConnectionError(http2.ErrCodeFlowControl)
			}
			h.schedule()
		}
	}
	if v, ok := all[http2.SettingMaxFrameSize]; ok {
		c.limits.maxFrame = min(int64(v), largestFrame)
	}
	return nil
}

// handleGoAway handles a server's request to use another connection. It ignores the client's.
func (c *conn) handleGoAway(f *http2.GoAwayFrame) {
	if c.backend == nil {
		return
	}
	c.refuseNew()
	for id, b := range c.streams.byID {
		if id > f.LastStreamID {
			b.handleReset(http2.ErrCodeRefusedStream) // the server has not processed it
		}
	}
	for _, b := range c.unsent() {
		b.moveTo(c.backend)
	}
	if c.backend == c.router.config.App && c.backend == c.router.config.Host {
		c.router.leaveLocked()
	}
}

// handleWindowUpdate enlarges a window for sending.
func (c *conn) handleWindowUpdate(h *halfStream, f *http2.WindowUpdateFrame) error {
	n := int64(f.Increment)
	if f.StreamID == 0 {
		if c.limits.window += n; c.limits.window > math.MaxInt32 {
			return http2.ConnectionError(http2.ErrCodeFlowControl)
		}
		c.queue.ready = append(c.queue.ready, c.queue.blocked...)
		c.queue.blocked = nil
		c.queue.wake.Signal()
		return nil
	}
	if h == nil {
		return c.checkNotIdle(f.StreamID)
	}
	if h.send.window += n; h.send.window > math.MaxInt32 {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeFlowControl}
	}
	h.schedule()
	return nil
}

// handleData handles a part of a body.
func (c *conn) handleData(h *halfStream, f *http2.DataFrame) error {
	n := int64(f.Length)
	if c.recv.window -= n; c.recv.window < 0 {
		return http2.ConnectionError(http2.ErrCodeFlowControl)
	}
	c.recv.held += n
	c.router.countHeld(n)
	if h == nil {
		c.credit(n)
		return c.dataAfterEnd(f.StreamID)
	}
	if h.recv.ended {
		c.credit(n)
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeStreamClosed}
	}
	if err := h.countData(f); err != nil {
		c.credit(n)
		return err
	}
	h.hold(n)
	if (c.recv.parked > maxParked && h.isForLaptop()) || c.router.overBudget() {
		h.credit(n)
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeEnhanceYourCalm}
	}
	body := f.Data()
	h.credit(n - int64(len(body))) // padding
	return h.handleBody(body, f.StreamEnded())
}

// countData checks a DATA frame against the length that the request gave and against the window of
// the stream.
func (h *halfStream) countData(f *http2.DataFrame) error {
	if h.recv.bodyLeft >= 0 {
		h.recv.bodyLeft -= int64(len(f.Data()))
		if h.recv.bodyLeft < 0 || (f.StreamEnded() && h.recv.bodyLeft > 0) {
			return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeProtocol}
		}
	}
	if h.recv.window -= int64(f.Length); h.recv.window+h.conn.recv.late < 0 {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeFlowControl}
	}
	return nil
}

// isConnectionField reports whether a field belongs to a connection of HTTP/1. No message of HTTP/2
// may have one (RFC 9113, section 8.2.2).
func isConnectionField(f hpack.HeaderField) bool {
	switch f.Name {
	case "connection", "proxy-connection", "transfer-encoding", "upgrade", "keep-alive":
		return true
	case "te":
		return !strings.EqualFold(f.Value, "trailers")
	}
	return false
}
