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
func (w *Switch) holds(n int64) {
	if w.ended {
		return
	}
	w.held += n
	shared.held.Add(n)
}

// copies counts n bytes of copies more that wait, or fewer.
func (s *side) copies(n int) {
	s.copied += n
	shared.copied.Add(int64(n))
}

// greedy says whether too much waits in all, and more here than elsewhere.
func (w *Switch) greedy() bool {
	return shared.held.Load() > heldTogether && w.held > heldTogether/max(1, shared.switches.Load())
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
func (w *Switch) receives(way *Way) receives {
	r := receives{size: serverWindow, stream: 1 << 20, widest: 4 << 20, limit: maxStreams}
	switch way {
	case nil:
		r.size, r.stream, r.widest = clientWindow, 64<<10, 256<<10
	case w.config.App:
		r.stream, r.widest = 64<<10, 1<<20
	}
	r.given, r.granted = r.size, r.stream
	return r
}

// begins says the first settings of a connection, before all else.
func (s *side) begins(streams uint32, settings ...http2.Setting) {
	settings = append(settings, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(s.stream)}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: largestFrame})
	s.promised = streams
	s.unconfirmed = append(s.unconfirmed, promise{streams: streams})
	s.first(func(s *side) error {
		if s.way != nil {
			if _, err := s.out.WriteString(http2.ClientPreface); err != nil {
				return err
			}
		}
		if err := s.framer.WriteSettings(settings...); err != nil {
			return err
		}
		return s.framer.WriteWindowUpdate(0, uint32(s.size-defaultWindow))
	})
}

// set says further settings. Each stream is given less when the other end has acknowledged them.
func (s *side) set(less int64, streams uint32, settings ...http2.Setting) {
	s.promised = streams
	s.unconfirmed = append(s.unconfirmed, promise{less: less, streams: streams})
	s.say(func(s *side) error { return s.framer.WriteSettings(settings...) })
}

// acknowledged is when the other end keeps to settings.
func (s *side) acknowledged() {
	if len(s.unconfirmed) == 0 {
		return
	}
	p := s.unconfirmed[0]
	s.unconfirmed = s.unconfirmed[1:]
	s.limit = p.streams
	if p.less == 0 {
		return
	}
	s.grant(-p.less)
	s.late = p.less
	for _, h := range s.streams {
		h.widen(s.stream / smaller) // or it might never send again
	}
}

// grant gives each stream more, or less.
func (s *side) grant(n int64) {
	s.granted += n
	for _, h := range s.streams {
		h.given += n
	}
}

// hold is when n bytes have come on a stream that wait.
func (h *half) hold(n int64) {
	h.held += n
	if h.parks() {
		h.side.parked += n
	}
	h.side.press()
	h.side.refill()
}

// parks says whether what comes on a stream is a laptop's.
func (h *half) parks() bool {
	st := h.stream
	return h == st.client && st.up != nil && st.up.side.way != st.sw.config.App
}

// park counts what waits of a request among what waits for laptops, or no longer, if it is for one.
func (st *stream) park(sign int64) {
	if st.client.parks() {
		st.client.side.parked += sign * st.client.held
	}
}

// press has the other end send less of each stream while much waits.
func (s *side) press() {
	tight := s.held > s.size/4 || (s.tight && s.held > s.size/8)
	if tight == s.tight || (s.way == nil && !s.sw.greeted) {
		return
	}
	s.tight = tight
	now := s.stream / smaller
	less := s.stream - now
	if !tight {
		s.grant(less) // it may make use of it before it has said so
		less, now = 0, s.stream
	}
	s.set(less, s.promised, http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(now)})
}

// credit lets whoever sends on a stream send as much more.
func (h *half) credit(n int64) {
	s := h.side
	h.held -= n
	if h.parks() {
		s.parked -= n
	}
	s.credit(n)
	h.wanted = max(h.wanted, s.granted)
	if h.given+h.held > h.wanted-h.wanted/4 {
		return
	}
	if h.wanted < s.stream || s.held < s.size/8 {
		h.wanted = min(2*h.wanted, s.widest)
	}
	h.widen(h.wanted)
}

// widen lets whoever sends on a stream send until as much as is wanted waits.
func (h *half) widen(wanted int64) {
	n := wanted - h.given - h.held
	if n <= 0 || h.closed || h.heard {
		return
	}
	h.given += n
	id := h.id
	h.side.say(func(s *side) error { return s.framer.WriteWindowUpdate(id, uint32(n)) })
}

// credit lets the other end send as much more.
func (s *side) credit(n int64) {
	s.held -= n
	s.sw.holds(-n)
	s.press()
	s.refill()
}

// refill lets the other end send as much as the connection's window has room for. What nobody takes, beyond half of it, is given once more, so that
// the rest goes on: by then new streams begin with little, as the other end has been told before it is given this.
func (s *side) refill() {
	stuck := min(s.held, s.size)
	if s.way == nil {
		stuck = s.parked
	}
	n := s.size - s.given - s.held + max(0, stuck-s.size/2)
	if n < s.size/16 {
		return
	}
	s.given += n
	s.say(func(s *side) error { return s.framer.WriteWindowUpdate(0, uint32(n)) })
}

// overfull says whether there is no room for more fields. If nobody else has any, there is.
func (w *Switch) overfull(fields []hpack.HeaderField) bool {
	it := item{fields: fields}
	return w.fields+it.size() > heldFields || w.greedy()
}
