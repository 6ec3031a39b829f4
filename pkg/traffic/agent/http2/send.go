package http2

import (
	"bytes"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// item is something to say on a stream: fields, a part of a body or a reset.
type item struct {
	fields []hpack.HeaderField
	data   []byte
	end    bool
	reset  bool
	code   http2.ErrCode
	owed   bool // whoever sent the data may send as much more when it is passed on
	room   int  // of the memory that the data is in
}

func (i *item) size() int {
	n := len(i.data)
	for _, f := range i.fields {
		n += int(f.Size())
	}
	return n
}

// write says what there is to say until the side ends. It says whether all was said.
func (c *conn) write() (all bool) {
	c.router.mu.Lock()
	defer c.router.mu.Unlock()
	for {
		frame, id, it := c.pick()
		var err error
		switch {
		case frame != nil:
			c.router.mu.Unlock()
			err = frame(c)
			c.router.mu.Lock()
		case id != 0:
			c.router.mu.Unlock()
			err = c.put(id, &it)
			c.router.mu.Lock()
		case c.out.Buffered() > 0:
			c.router.mu.Unlock()
			err = c.out.Flush()
			c.router.mu.Lock()
		case c.finishing:
			return true
		default:
			c.wake.Wait()
		}
		if err != nil {
			if c.err == nil {
				c.err = err
			}
			// Whoever reads hears of it, after what the other end may have said before it closed.
			_ = c.netConn.SetReadDeadline(time.Now().Add(lingering))
			return false
		}
	}
}

// put writes the frames of an item.
func (c *conn) put(id uint32, it *item) error {
	switch {
	case it.reset:
		return c.framer.WriteRSTStream(id, it.code)
	case it.fields == nil:
		return c.framer.WriteData(id, it.end, it.data)
	}
	c.block.Reset()
	for _, f := range it.fields {
		if err := c.fields.WriteField(f); err != nil {
			return err
		}
	}
	for begins := true; begins || c.block.Len() > 0; begins = false {
		part := c.block.Next(defaultFrame)
		var err error
		if begins {
			err = c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: part, EndStream: it.end, EndHeaders: c.block.Len() == 0})
		} else {
			err = c.framer.WriteContinuation(id, c.block.Len() == 0, part)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// pick is what is to be written next: a frame of the connection's own, or an item of a stream.
func (c *conn) pick() (frame func(*conn) error, id uint32, it item) {
	if c.backend == nil && !c.router.greeted {
		return nil, 0, item{}
	}
	if len(c.said) > 0 {
		frame = c.said[0]
		c.said = c.said[1:]
		return frame, 0, item{}
	}
	for len(c.ready) > 0 {
		h := c.ready[0]
		c.ready = c.ready[1:]
		h.listed = false
		if h.closed || len(h.queue) == 0 {
			continue
		}
		if h.id == 0 {
			if uint32(c.begun) >= c.most {
				h.listed = true
				c.waiting = append(c.waiting, h)
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

// begin gives a stream its number.
func (h *halfStream) begin() {
	c := h.conn
	h.id, h.window, h.given = c.next, c.initial, c.granted
	c.next += 2
	c.begun++
	c.streams[h.id] = h
	st := h.stream
	if h != st.up {
		return
	}
	if st.watch != nil {
		st.watch.Went(c.backend)
	}
	if c.backend.Ask != nil {
		h.asked = c.backend.Ask(c.netConn, func() { st.router.config.Go(h.untaken) })
	}
}

// take is what can be written of a stream now, if anything.
func (h *halfStream) take() (it item, ok bool) {
	c := h.conn
	it = h.queue[0]
	if len(it.data) > 0 {
		n := min(int64(len(it.data)), h.window, c.window, c.frame)
		switch {
		case n <= 0 && h.hurry:
			h.discard(h.queue[:len(h.queue)-1])
			h.queue = h.queue[len(h.queue)-1:]
			it = h.queue[0]
			n = 0
		case n <= 0 && h.window > 0:
			h.listed = true
			c.full = append(c.full, h)
			return item{}, false
		case n <= 0:
			return item{}, false
		}
		h.window -= n
		c.window -= n
		if h.copy {
			c.copies(-int(n))
		}
		if it.owed {
			h.source().credit(n)
		}
		if n > 0 && n < int64(len(it.data)) {
			rest := &h.queue[0]
			rest.data = it.data[n:]
			if (h.window <= 0 || c.window <= 0) && 2*len(rest.data) < rest.room {
				rest.data, rest.room = bytes.Clone(rest.data), len(rest.data) // a little that waits is not to keep much
			}
			it.data, it.end = it.data[:n], false
			h.progress()
			return it, true
		}
	} else if h.copy {
		c.copies(-it.size())
	}
	h.queue = h.queue[1:]
	h.weigh(&it, -1)
	h.progress()
	switch {
	case it.reset:
		h.close()
	case it.end:
		h.ended = true
		h.settle()
	}
	return it, true
}

// progress goes on with what else there is to say.
func (h *halfStream) progress() {
	h.schedule()
	switch {
	case h.stall == nil:
	case len(h.queue) > 0:
		h.stall.Reset(copyStall)
	default:
		h.stall.Stop()
	}
}

// schedule has a stream written when something can be.
func (h *halfStream) schedule() {
	if h.closed || h.listed || len(h.queue) == 0 {
		return
	}
	if h.id != 0 && len(h.queue[0].data) > 0 && h.window <= 0 && !h.hurry {
		return
	}
	h.listed = true
	h.conn.ready = append(h.conn.ready, h)
	h.conn.wake.Signal()
}

// push says something on a stream.
func (h *halfStream) push(it item) {
	if h.closed || h.resets {
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
		h.conn.copies(it.size())
		if len(h.queue) == 0 {
			h.stall.Reset(copyStall)
		}
	}
	h.weigh(&it, 1)
	h.queue = add(h.queue, it)
	h.schedule()
}

// weigh counts an item's fields that wait, or do no longer.
func (h *halfStream) weigh(it *item, sign int) {
	if it.fields != nil && !h.copy {
		n := sign * it.size()
		h.conn.router.fields += n
		h.conn.router.holds(int64(n))
	}
}

// add puts an item to those that wait. Small parts of a body become one: what waits is bounded in bytes and not in parts.
func add(queue []item, it item) []item {
	if n := len(queue); n > 0 && it.fields == nil && !it.reset {
		last := &queue[n-1]
		if last.fields == nil && !last.reset && !last.end && last.owed == it.owed && len(last.data)+len(it.data) <= defaultFrame {
			last.data, last.end = append(last.data, it.data...), it.end
			last.room = cap(last.data)
			return queue
		}
	}
	it.room = len(it.data)
	return append(queue, it)
}

// discard forgets what will not be said.
func (h *halfStream) discard(all []item) {
	for i := range all {
		h.weigh(&all[i], -1)
		if all[i].owed {
			h.source().credit(int64(len(all[i].data)))
		}
		if h.copy {
			h.conn.copies(-all[i].size())
		}
	}
}

func newStall(h *halfStream) *time.Timer {
	r := h.conn.router
	t := time.AfterFunc(copyStall, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(h.queue) > 0 {
			h.drop()
		}
	})
	t.Stop()
	return t
}
