package http2

import (
	"bytes"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// item is something to send on a stream: fields, a part of a body, or a reset.
type item struct {
	fields []hpack.HeaderField
	data   []byte
	end    bool
	reset  bool
	code   http2.ErrCode
	owed   bool // the sender's window grows when the data is passed on
	room   int  // bytes of the memory that holds the data
}

// size returns the bytes of an item's fields and data.
func (i *item) size() int {
	n := len(i.data)
	for _, f := range i.fields {
		n += int(f.Size())
	}
	return n
}

// sendLoop sends what is queued until the connection ends. It reports whether everything was sent.
// It locks mu itself.
func (c *conn) sendLoop() (all bool) {
	c.router.mu.Lock()
	defer c.router.mu.Unlock()
	for {
		frame, id, it := c.nextItem()
		var err error
		switch {
		case frame != nil:
			c.router.mu.Unlock()
			err = frame(c)
			c.router.mu.Lock()
		case id != 0:
			c.router.mu.Unlock()
			err = c.writeItem(id, &it)
			c.router.mu.Lock()
		case c.w.out.Buffered() > 0:
			c.router.mu.Unlock()
			err = c.w.out.Flush()
			c.router.mu.Lock()
		case c.state.finishing:
			return true
		default:
			c.queue.wake.Wait()
		}
		if err != nil {
			if c.state.err == nil {
				c.state.err = err
			}
			// receiveLoop ends too, after it has read what the peer may have sent before it closed.
			_ = c.netConn.SetReadDeadline(time.Now().Add(lingering))
			return false
		}
	}
}

// writeItem writes the frames of an item. It does not need mu.
func (c *conn) writeItem(id uint32, it *item) error {
	switch {
	case it.reset:
		return c.framer.WriteRSTStream(id, it.code)
	case it.fields == nil:
		return c.framer.WriteData(id, it.end, it.data)
	}
	c.w.block.Reset()
	for _, f := range it.fields {
		if err := c.w.fields.WriteField(f); err != nil {
			return err
		}
	}
	for begins := true; begins || c.w.block.Len() > 0; begins = false {
		part := c.w.block.Next(defaultFrame)
		var err error
		if begins {
			err = c.framer.WriteHeaders(http2.HeadersFrameParam{
				StreamID: id, BlockFragment: part, EndStream: it.end,
				EndHeaders: c.w.block.Len() == 0,
			})
		} else {
			err = c.framer.WriteContinuation(id, c.w.block.Len() == 0, part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// nextItem returns what is sent next: a control frame, or an item of a stream. Without either,
// frame is nil and id is 0.
func (c *conn) nextItem() (frame func(*conn) error, id uint32, it item) {
	if c.backend == nil && !c.router.settingsSent {
		return nil, 0, item{}
	}
	if len(c.queue.control) > 0 {
		frame = c.queue.control[0]
		c.queue.control = c.queue.control[1:]
		return frame, 0, item{}
	}
	for len(c.queue.ready) > 0 {
		h := c.queue.ready[0]
		c.queue.ready = c.queue.ready[1:]
		h.send.scheduled = false
		if h.closed || len(h.send.queue) == 0 {
			continue
		}
		if h.id == 0 {
			if uint32(c.streams.open) >= c.limits.maxStreams {
				h.send.scheduled = true
				c.queue.waiting = append(c.queue.waiting, h)
				continue
			}
			h.begin()
		}
		if it, ok := h.take(); ok {
			return nil, h.id, it
		}
	}
	return nil, 0, item{}
}

// begin gives a stream its number on the connection.
func (h *halfStream) begin() {
	c := h.conn
	h.id, h.send.window, h.recv.window = c.streams.nextID, c.limits.initialWindow, c.recv.granted
	c.streams.nextID += 2
	c.streams.open++
	c.streams.byID[h.id] = h
	st := h.stream
	if h != st.up {
		return
	}
	if st.watch != nil {
		st.watch.Went(c.backend)
	}
	if c.backend.Track != nil {
		h.delivered = c.backend.Track(c.netConn, func() { st.router.config.Go(h.deliveryFailed) })
	}
}

// take removes and returns the item of a stream that can be sent now, or a part of it. ok is false
// when the item waits for a window.
func (h *halfStream) take() (it item, ok bool) {
	it = h.send.queue[0]
	if len(it.data) > 0 {
		n, ok := h.takeWindow(&it)
		if !ok {
			return item{}, false
		}
		if n > 0 && n < int64(len(it.data)) {
			return h.split(it, n), true
		}
	} else if h.copy {
		h.conn.countCopied(-it.size())
	}
	h.send.queue = h.send.queue[1:]
	h.countFields(&it, -1)
	h.continueSending()
	switch {
	case it.reset:
		h.close()
	case it.end:
		h.send.ended = true
		h.closeIfDone()
	}
	return it, true
}

// takeWindow takes as much of the windows as the data of an item needs, and returns how many bytes
// of it may be sent. Without a window it returns false; but when a reset must not wait, it drops
// the data and sets it to the reset.
func (h *halfStream) takeWindow(it *item) (n int64, ok bool) {
	c := h.conn
	n = min(int64(len(it.data)), h.send.window, c.limits.window, c.limits.maxFrame)
	switch {
	case n <= 0 && h.send.resetNow:
		h.discard(h.send.queue[:len(h.send.queue)-1])
		h.send.queue = h.send.queue[len(h.send.queue)-1:]
		*it = h.send.queue[0]
		n = 0
	case n <= 0 && h.send.window > 0:
		h.send.scheduled = true
		c.queue.blocked = append(c.queue.blocked, h)
		return 0, false
	case n <= 0:
		return 0, false
	}
	h.send.window -= n
	c.limits.window -= n
	if h.copy {
		c.countCopied(-int(n))
	}
	if it.owed {
		h.source().credit(n)
	}
	return n, true
}

// split returns the first n bytes of the first item, and leaves the others in the queue.
func (h *halfStream) split(it item, n int64) item {
	rest := &h.send.queue[0]
	rest.data = it.data[n:]
	// A small rest that waits must not hold a large buffer.
	if (h.send.window <= 0 || h.conn.limits.window <= 0) && 2*len(rest.data) < rest.room {
		rest.data, rest.room = bytes.Clone(rest.data), len(rest.data)
	}
	it.data, it.end = it.data[:n], false
	h.continueSending()
	return it
}

// continueSending schedules the rest of a stream, and restarts the stall timer of a copy.
func (h *halfStream) continueSending() {
	h.schedule()
	switch {
	case h.stall == nil:
	case len(h.send.queue) > 0:
		h.stall.Reset(copyStall)
	default:
		h.stall.Stop()
	}
}

// schedule queues a stream if it has something that can be sent.
func (h *halfStream) schedule() {
	if h.closed || h.send.scheduled || len(h.send.queue) == 0 {
		return
	}
	if h.id != 0 && len(h.send.queue[0].data) > 0 && h.send.window <= 0 && !h.send.resetNow {
		return
	}
	h.send.scheduled = true
	h.conn.queue.ready = append(h.conn.queue.ready, h)
	h.conn.queue.wake.Signal()
}

// enqueue sends an item on a stream, after those that wait.
func (h *halfStream) enqueue(it item) {
	if h.closed || h.send.resetQueued {
		if it.owed {
			h.source().credit(int64(len(it.data)))
		}
		return
	}
	if h.copy {
		if n := it.size(); h.conn.copied+n > copyLimit || shared.copied.Load()+int64(n) > copiesTogether {
			h.drop()
			return
		}
		h.conn.countCopied(it.size())
		if len(h.send.queue) == 0 {
			h.stall.Reset(copyStall)
		}
	}
	h.countFields(&it, 1)
	h.send.queue = add(h.send.queue, it)
	h.schedule()
}

// countFields adds the fields of an item to those that wait (sign 1), or removes them (sign -1).
func (h *halfStream) countFields(it *item, sign int) {
	if it.fields != nil && !h.copy {
		n := sign * it.size()
		h.conn.router.fieldBytes += n
		h.conn.router.countHeld(int64(n))
	}
}

// add appends an item to a queue. It joins small parts of a body, because a queue is bounded in
// bytes and not in items.
func add(queue []item, it item) []item {
	if n := len(queue); n > 0 && it.fields == nil && !it.reset {
		last := &queue[n-1]
		joins := last.fields == nil && !last.reset && !last.end && last.owed == it.owed
		if joins && len(last.data)+len(it.data) <= defaultFrame {
			last.data, last.end = append(last.data, it.data...), it.end
			last.room = cap(last.data)
			return queue
		}
	}
	it.room = len(it.data)
	return append(queue, it)
}

// discard drops items that will not be sent.
func (h *halfStream) discard(all []item) {
	for i := range all {
		h.countFields(&all[i], -1)
		if all[i].owed {
			h.source().credit(int64(len(all[i].data)))
		}
		if h.copy {
			h.conn.countCopied(-all[i].size())
		}
	}
}

// newStall returns the timer that drops a copy whose backend reads nothing. It is stopped.
func newStall(h *halfStream) *time.Timer {
	r := h.conn.router
	t := time.AfterFunc(copyStall, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(h.send.queue) > 0 {
			h.drop()
		}
	})
	t.Stop()
	return t
}
