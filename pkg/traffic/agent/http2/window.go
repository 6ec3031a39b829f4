package http2

import (
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// clientWindow and serverWindow bound what waits here of all that comes on a connection, in bytes, but for what refill adds.
	clientWindow = 4 << 20
	serverWindow = 8 << 20
	// parkedMost bounds what waits for laptops, of a client: see refill.
	parkedMost = clientWindow * 3 / 2
	// smaller is how much less a stream's window begins with while much waits on its connection: what nobody takes is to hold up nobody else.
	smaller = 16
	// heldTogether bounds what waits in all of an agent, whose memory is one. Beyond it streams end of whom more waits than its part.
	heldTogether = 24 << 20
)

// shared is what waits in all of the process.
var shared struct{ held, copied, switches atomic.Int64 }

// holds counts n bytes more that wait, or fewer.
func (r *Router) holds(n int64) {
	if r.ended {
		return
	}
	r.held += n
	shared.held.Add(n)
}

// copies counts n bytes of copies more that wait, or fewer.
func (c *conn) copies(n int) {
	c.copied += n
	shared.copied.Add(int64(n))
}

// greedy says whether too much waits in all, and more here than elsewhere.
func (r *Router) greedy() bool {
	return shared.held.Load() > heldTogether && r.held > heldTogether/max(1, shared.switches.Load())
}

// receives is how much the other end of a connection may send, and what waits of it.
type receives struct {
	size        int64  // of the connection's window
	stream      int64  // the window that a stream begins with
	widest      int64  // and that it may grow to while it is passed on and little waits
	given       int64  // what may be received
	held        int64  // received and not passed on yet
	parked      int64  // of that, what waits for laptops
	tight       bool   // much waits: streams begin with little
	late        int64  // what may yet come on a stream that was given less: Go's client says that it knows while another goroutine is about to send
	granted     int64  // what a new stream is given, as far as the other end knows
	limit       uint32 // how many streams the client may begin, as far as it knows
	promised    uint32
	unconfirmed []promise
}

// promise is what holds once the other end has acknowledged settings.
type promise struct {
	less    int64 // given to each stream
	streams uint32
}

// receives is how a side begins. A laptop is far away, so that a stream of its needs much to be fast at once.
func (r *Router) receives(backend *Backend) receives {
	v := receives{size: serverWindow, stream: 1 << 20, widest: 4 << 20, limit: maxStreams}
	switch backend {
	case nil:
		v.size, v.stream, v.widest = clientWindow, 64<<10, 256<<10
	case r.config.App:
		v.stream, v.widest = 64<<10, 1<<20
	}
	v.given, v.granted = v.size, v.stream
	return v
}

// begins says the first settings of a connection, before all else.
func (c *conn) begins(streams uint32, settings ...http2.Setting) {
	settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.stream)}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: largestFrame})
	c.promised = streams
	c.unconfirmed = append(c.unconfirmed, promise{streams: streams})
	c.first(func(c *conn) error {
		if c.backend != nil {
			if _, err := c.out.WriteString(http2.ClientPreface); err != nil {
				return err
			}
		}
		if err := c.framer.WriteSettings(settings...); err != nil {
			return err
		}
		return c.framer.WriteWindowUpdate(0, uint32(c.size-defaultWindow))
	})
}

// set says further settings. Each stream is given less when the other end has acknowledged them.
func (c *conn) set(less int64, streams uint32, settings ...http2.Setting) {
	c.promised = streams
	c.unconfirmed = append(c.unconfirmed, promise{less: less, streams: streams})
	c.say(func(c *conn) error { return c.framer.WriteSettings(settings...) })
}

// acknowledged is when the other end keeps to settings.
func (c *conn) acknowledged() {
	if len(c.unconfirmed) == 0 {
		return
	}
	p := c.unconfirmed[0]
	c.unconfirmed = c.unconfirmed[1:]
	c.limit = p.streams
	if p.less == 0 {
		return
	}
	c.grant(-p.less)
	c.late = p.less
	for _, h := range c.streams {
		h.widen(c.stream / smaller) // or it might never send again
	}
}

// grant gives each stream more, or less.
func (c *conn) grant(n int64) {
	c.granted += n
	for _, h := range c.streams {
		h.given += n
	}
}

// hold is when n bytes have come on a stream that wait.
func (h *halfStream) hold(n int64) {
	h.held += n
	if h.parks() {
		h.conn.parked += n
	}
	h.conn.press()
	h.conn.refill()
}

// parks says whether what comes on a stream is a laptop'c.
func (h *halfStream) parks() bool {
	st := h.stream
	return h == st.client && st.up != nil && st.up.conn.backend != st.router.config.App
}

// park counts what waits of a request among what waits for laptops, or no longer, if it is for one.
func (st *stream) park(sign int64) {
	if st.client.parks() {
		st.client.conn.parked += sign * st.client.held
	}
}

// press has the other end send less of each stream while much waits.
func (c *conn) press() {
	tight := c.held > c.size/4 || (c.tight && c.held > c.size/8)
	if tight == c.tight || (c.backend == nil && !c.router.greeted) {
		return
	}
	c.tight = tight
	now := c.stream / smaller
	less := c.stream - now
	if !tight {
		c.grant(less) // it may make use of it before it has said so
		less, now = 0, c.stream
	}
	c.set(less, c.promised, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(now)})
}

// credit lets whoever sends on a stream send as much more.
func (h *halfStream) credit(n int64) {
	c := h.conn
	h.held -= n
	if h.parks() {
		c.parked -= n
	}
	c.credit(n)
	h.wanted = max(h.wanted, c.granted)
	if h.given+h.held > h.wanted-h.wanted/4 {
		return
	}
	if h.wanted < c.stream || c.held < c.size/8 {
		h.wanted = min(2*h.wanted, c.widest)
	}
	h.widen(h.wanted)
}

// widen lets whoever sends on a stream send until as much as is wanted waits.
func (h *halfStream) widen(wanted int64) {
	n := wanted - h.given - h.held
	if n <= 0 || h.closed || h.heard {
		return
	}
	h.given += n
	id := h.id
	h.conn.say(func(c *conn) error { return c.framer.WriteWindowUpdate(id, uint32(n)) })
}

// credit lets the other end send as much more.
func (c *conn) credit(n int64) {
	c.held -= n
	c.router.holds(-n)
	c.press()
	c.refill()
}

// refill lets the other end send as much as the connection's window has room for. What nobody takes, beyond half of it, is given once more, so that
// the rest goes on: by then new streams begin with little, as the other end has been told before it is given this.
func (c *conn) refill() {
	stuck := min(c.held, c.size)
	if c.backend == nil {
		stuck = c.parked
	}
	n := c.size - c.given - c.held + max(0, stuck-c.size/2)
	if n < c.size/16 {
		return
	}
	c.given += n
	c.say(func(c *conn) error { return c.framer.WriteWindowUpdate(0, uint32(n)) })
}

// overfull says whether there is no room for more fields. If nobody else has any, there is.
func (r *Router) overfull(fields []hpack.HeaderField) bool {
	it := item{fields: fields}
	return r.fields+it.size() > heldFields || r.greedy()
}
