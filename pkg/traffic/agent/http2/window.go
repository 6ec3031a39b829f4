package http2

import (
	"sync/atomic"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	// clientWindow and serverWindow bound the bytes of a connection that are held here, except for
	// what refill adds.
	clientWindow = 4 << 20
	serverWindow = 8 << 20
	// maxParked bounds the bytes of a client that wait for laptops; see refill.
	maxParked = clientWindow * 3 / 2
	// smaller is the factor by which a stream's first window shrinks while much is held on its
	// connection: a stream that nobody reads must not block the others.
	smaller = 16
	// heldTogether bounds the bytes that are held in the whole agent. Beyond it, streams of a
	// client end that holds more than its share.
	heldTogether = 24 << 20
)

// shared counts what is held in the whole process, and its Routers.
var shared struct{ held, copied, switches atomic.Int64 }

// countHeld counts n more bytes that are held. n may be negative.
func (r *Router) countHeld(n int64) {
	if r.ended {
		return
	}
	r.held += n
	shared.held.Add(n)
}

// countCopied counts n more bytes of copies that wait. n may be negative.
func (c *conn) countCopied(n int) {
	c.copied += n
	shared.copied.Add(int64(n))
}

// overBudget reports whether the agent holds too much, and this Router more than its share.
func (r *Router) overBudget() bool {
	return shared.held.Load() > heldTogether && r.held > heldTogether/max(1, shared.switches.Load())
}

// receiveWindow is how much the other end of a connection may send, and how much of it is held
// here. Sizes are in bytes.
type receiveWindow struct {
	size            int64 // of the connection's window
	streamWindow    int64 // with which a stream begins
	maxStreamWindow int64 // to which it grows while its data is passed on and little is held
	window          int64 // what the other end may send on the connection
	held            int64 // received and not passed on
	parked          int64 // the part of held that waits for laptops
	tight           bool  // much is held: streams begin with a small window
	// late is what may still arrive on a stream whose window was made smaller: Go's client
	// acknowledges SETTINGS while another of its goroutines is about to send.
	late        int64
	granted     int64  // the window of a new stream, as far as the other end knows
	maxStreams  uint32 // that the client may open, as far as it knows
	promised    uint32 // the newest value of maxStreams that was sent
	unconfirmed []promise
}

// promise is what applies once the peer has acknowledged SETTINGS.
type promise struct {
	less    int64 // by which each stream's window shrinks
	streams uint32
}

// newReceiveWindow returns the window with which a connection begins. A laptop is far away, so its
// streams need a large window to be fast from the start.
func (r *Router) newReceiveWindow(backend *Backend) receiveWindow {
	v := receiveWindow{size: serverWindow, streamWindow: 1 << 20, maxStreamWindow: 4 << 20, maxStreams: maxStreams}
	switch backend {
	case nil:
		v.size, v.streamWindow, v.maxStreamWindow = clientWindow, 64<<10, 256<<10
	case r.config.App:
		v.streamWindow, v.maxStreamWindow = 64<<10, 1<<20
	}
	v.window, v.granted = v.size, v.streamWindow
	return v
}

// sendFirstSettings sends the first frames of a connection.
func (c *conn) sendFirstSettings(streams uint32, settings ...http2.Setting) {
	settings = append(settings,
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(c.recv.streamWindow)},
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: largestFrame})
	c.recv.promised = streams
	c.recv.unconfirmed = append(c.recv.unconfirmed, promise{streams: streams})
	c.sendControlFirst(func(c *conn) error {
		if c.backend != nil {
			if _, err := c.w.out.WriteString(http2.ClientPreface); err != nil {
				return err
			}
		}
		if err := c.framer.WriteSettings(settings...); err != nil {
			return err
		}
		return c.framer.WriteWindowUpdate(0, uint32(c.recv.size-defaultWindow))
	})
}

// sendSettings sends further settings. Each stream's window shrinks when the peer has acknowledged
// them.
func (c *conn) sendSettings(less int64, streams uint32, settings ...http2.Setting) {
	c.recv.promised = streams
	c.recv.unconfirmed = append(c.recv.unconfirmed, promise{less: less, streams: streams})
	c.sendControl(func(c *conn) error { return c.framer.WriteSettings(settings...) })
}

// settingsAcknowledged applies what the peer has acknowledged.
func (c *conn) settingsAcknowledged() {
	if len(c.recv.unconfirmed) == 0 {
		return
	}
	p := c.recv.unconfirmed[0]
	c.recv.unconfirmed = c.recv.unconfirmed[1:]
	c.recv.maxStreams = p.streams
	if p.less == 0 {
		return
	}
	c.grant(-p.less)
	c.recv.late = p.less
	for _, h := range c.streams.byID {
		h.grantWindow(c.recv.streamWindow / smaller) // without a window the stream might never send again
	}
}

// grant enlarges the window of each stream by n, which may be negative.
func (c *conn) grant(n int64) {
	c.recv.granted += n
	for _, h := range c.streams.byID {
		h.recv.window += n
	}
}

// hold counts n bytes that a stream has received and not passed on.
func (h *halfStream) hold(n int64) {
	h.recv.held += n
	if h.isForLaptop() {
		h.conn.recv.parked += n
	}
	h.conn.adjustPressure()
	h.conn.refill()
}

// isForLaptop reports whether the data of a stream goes from the client to a laptop.
func (h *halfStream) isForLaptop() bool {
	st := h.stream
	return h == st.client && st.up != nil && st.up.conn.backend != st.router.config.App
}

// countParked adds the held data of a request to what waits for laptops (sign 1), or removes it
// (sign
// -1), if the request goes to a laptop.
func (st *stream) countParked(sign int64) {
	if st.client.isForLaptop() {
		st.client.conn.recv.parked += sign * st.client.recv.held
	}
}

// adjustPressure makes the peer send less on each stream while much is held.
func (c *conn) adjustPressure() {
	tight := c.recv.held > c.recv.size/4 || (c.recv.tight && c.recv.held > c.recv.size/8)
	if tight == c.recv.tight || (c.backend == nil && !c.router.settingsSent) {
		return
	}
	c.recv.tight = tight
	now := c.recv.streamWindow / smaller
	less := c.recv.streamWindow - now
	if !tight {
		c.grant(less) // the peer may use it before it acknowledges
		less, now = 0, c.recv.streamWindow
	}
	c.sendSettings(less, c.recv.promised, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(now)})
}

// credit returns n bytes of window to the sender of a stream.
func (h *halfStream) credit(n int64) {
	c := h.conn
	h.recv.held -= n
	if h.isForLaptop() {
		c.recv.parked -= n
	}
	c.credit(n)
	h.recv.target = max(h.recv.target, c.recv.granted)
	if h.recv.window+h.recv.held > h.recv.target-h.recv.target/4 {
		return
	}
	if h.recv.target < c.recv.streamWindow || c.recv.held < c.recv.size/8 {
		h.recv.target = min(2*h.recv.target, c.recv.maxStreamWindow)
	}
	h.grantWindow(h.recv.target)
}

// grantWindow lets the sender of a stream send until target bytes are in its window and held.
func (h *halfStream) grantWindow(target int64) {
	n := target - h.recv.window - h.recv.held
	if n <= 0 || h.closed || h.recv.ended {
		return
	}
	h.recv.window += n
	id := h.id
	h.conn.sendControl(func(c *conn) error { return c.framer.WriteWindowUpdate(id, uint32(n)) })
}

// credit returns n bytes of window to the peer.
func (c *conn) credit(n int64) {
	c.recv.held -= n
	c.router.countHeld(-n)
	c.adjustPressure()
	c.refill()
}

// refill enlarges the peer's window as far as the connection has room. Held data that nobody reads
// must not stop the other streams, so refill grants what exceeds half of the window once more. By
// then new streams begin with a small window: the peer was told so before it gets this grant.
func (c *conn) refill() {
	stuck := min(c.recv.held, c.recv.size)
	if c.backend == nil {
		stuck = c.recv.parked
	}
	n := c.recv.size - c.recv.window - c.recv.held + max(0, stuck-c.recv.size/2)
	if n < c.recv.size/16 {
		return
	}
	c.recv.window += n
	c.sendControl(func(c *conn) error { return c.framer.WriteWindowUpdate(0, uint32(n)) })
}

// fieldsOverBudget reports whether there is no memory for more fields.
func (r *Router) fieldsOverBudget(fields []hpack.HeaderField) bool {
	it := item{fields: fields}
	return r.fieldBytes+it.size() > heldFields || r.overBudget()
}
