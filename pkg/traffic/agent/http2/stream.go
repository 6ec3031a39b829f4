package http2

import (
	"bytes"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// stream is a request and its answer: on the client's connection, on a server's, and on those of the servers that get copies.
type stream struct {
	router   *Router
	client   *halfStream
	up       *halfStream // nil until it is known where it goes
	copies   []*halfStream
	method   string
	backend  *Backend
	strict   bool
	tries    int
	answered bool // the server has begun to
	grpc     string
	watch    Watcher

	keeping bool   // the request may have to be sent once more
	kept    []item // what was said of it so far
	size    int    // of what is kept
	body    int    // of all of its body so far
}

// halfStream is a stream on one of its connections.
type halfStream struct {
	conn        *conn
	stream      *stream
	id          uint32 // 0 until it is begun
	copy        bool
	queue       []item // to be said
	listed      bool   // among those of the side that wait
	resets      bool   // a reset waits, and nothing is said after it
	hurry       bool   // nor before it what has to wait for a window
	window      int64  // what may be sent
	given       int64  // what may be received
	held        int64  // received and not passed on yet
	wanted      int64  // both together, if it can be
	left        int64  // of the body that comes; negative when nothing was said of it
	ended       bool   // everything was said
	heard       bool   // and heard
	closed      bool
	resetByPeer bool        // the other end has sent RST_STREAM
	stall       *time.Timer // of a copy
	asked       func() bool // ends the question whether it was taken
}

// half is the stream on a side.
func (st *stream) half(c *conn) *halfStream {
	c.halves++
	return &halfStream{conn: c, stream: st, left: -1}
}

// source is where what is said on h comes from.
func (h *halfStream) source() *halfStream {
	if h == h.stream.client {
		return h.stream.up
	}
	return h.stream.client
}

// join sends a request a way.
func (st *stream) join(backend *Backend) {
	st.backend = backend
	st.park(-1)
	st.up = st.half(st.router.to(backend))
	st.park(1)
}

// keeps counts what is kept of requests.
func (r *Router) keeps(n int) {
	r.kept += n
	r.holds(int64(n))
}

// said passes on what the client said.
func (st *stream) said(it item) {
	st.client.heard = it.end
	alias := it
	alias.owed = false
	alias.data = it.data[:len(it.data):len(it.data)]
	for _, c := range st.copies {
		c.push(alias)
	}
	if st.keeping {
		n := alias.size()
		if st.body += len(it.data); st.body > keptBody || st.router.kept+n > maxKept {
			st.forget()
		} else {
			st.kept = add(st.kept, alias)
			st.size += n
			st.router.keeps(n)
		}
	}
	if st.up != nil {
		st.up.push(it)
	} else if it.owed {
		st.client.credit(int64(len(it.data))) // it was answered here
	}
	st.client.settle()
}

// forget keeps nothing of a request any more.
func (st *stream) forget() {
	st.keeping = false
	st.unkeep()
}

func (st *stream) unkeep() {
	st.router.keeps(-st.size)
	st.kept, st.size = nil, 0
}

// fields takes fields that came on a stream: an answer'c, or trailers.
func (h *halfStream) fields(f *http2.MetaHeadersFrame) error {
	st, end := h.stream, f.StreamEnded()
	if h.heard {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeStreamClosed}
	}
	malformed := http2.StreamError{StreamID: h.id, Code: http2.ErrCodeProtocol}
	for _, field := range f.RegularFields() {
		if connection(field) {
			return malformed
		}
	}
	trailers := h == st.client || (h == st.up && st.answered)
	if f.Truncated || (trailers && (!end || len(f.PseudoFields()) > 0 || h.left > 0)) {
		return malformed
	}
	if !h.copy && st.router.overfull(f.Fields) {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeEnhanceYourCalm}
	}
	if h.copy {
		h.hears(end)
		return nil
	}
	if h == st.client {
		st.said(item{fields: f.Fields, end: true})
		return nil
	}
	if !h.taken() {
		return nil // untaken follows
	}
	if !trailers {
		status, err := strconv.Atoi(f.PseudoValue("status"))
		if err != nil || status < 100 || status > 999 || (status < 200 && end) {
			return malformed
		}
		if status >= 200 {
			st.answered = true
			st.forget()
			if st.watch != nil {
				st.watch.Answered(status)
			}
		}
	}
	if end {
		for _, field := range f.Fields {
			if field.Name == "grpc-status" {
				st.grpc = field.Value
			}
		}
	}
	st.client.push(item{fields: f.Fields, end: end})
	h.hears(end)
	return nil
}

// body takes a part of a body.
func (h *halfStream) body(b []byte, end bool) error {
	st := h.stream
	if len(b) == 0 && !end {
		return nil
	}
	switch {
	case h.copy:
		h.credit(int64(len(b)))
		h.hears(end)
	case h == st.client:
		st.said(item{data: bytes.Clone(b), end: end, owed: true})
	case !st.answered:
		h.conn.credit(int64(len(b)))
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeProtocol}
	default:
		st.client.push(item{data: bytes.Clone(b), end: end, owed: true})
		h.hears(end)
	}
	return nil
}

// hears is when a server may have said everything.
func (h *halfStream) hears(end bool) {
	if !end {
		return
	}
	h.heard = true
	if h.copy && !h.ended {
		h.reset(http2.ErrCodeNo) // it wants no more of it
		return
	}
	h.settle()
}

// settle closes a stream on which everything was said and heard.
func (h *halfStream) settle() {
	if h.ended && h.heard {
		h.close()
	}
}

// close forgets a stream on a side.
func (h *halfStream) close() {
	if h.closed {
		return
	}
	h.discard(h.queue)
	h.closed = true
	h.queue = nil
	if h.stall != nil {
		h.stall.Stop()
	}
	_ = h.taken()
	c := h.conn
	c.halves--
	c.sweep()
	if h.id != 0 {
		delete(c.streams, h.id)
		if c.backend == nil && !h.heard && !h.resetByPeer {
			c.resetByUs.add(h.id)
		}
		if c.backend != nil {
			c.begun--
			c.admit()
		}
	}
	c.empty()
	if h == h.stream.client {
		h.stream.done()
	}
}

// done is when the client has nothing more to expect.
func (st *stream) done() {
	if st.watch != nil {
		st.watch.Ended(st.grpc)
	}
	st.unkeep()
	if st.client.heard {
		return
	}
	if st.up != nil {
		st.up.reset(http2.ErrCodeCancel) // unless it was reset
	}
	for _, c := range st.copies {
		c.reset(http2.ErrCodeCancel)
	}
}

// reset passes a reset on. What can still be said before it is, unless everything was: then all of it is.
func (h *halfStream) reset(code http2.ErrCode) {
	if h.closed || h.resets {
		return
	}
	if h.id == 0 && !h.copy { // a copy is told what there was of the original
		h.close()
		return
	}
	whole := h.ended || (len(h.queue) > 0 && h.queue[len(h.queue)-1].end)
	h.resets = true
	h.hurry = !whole || code != http2.ErrCodeNo
	h.queue = append(h.queue, item{reset: true, code: code})
	if h.hurry {
		h.listed = false // it may wait for the connection's window
	}
	h.schedule()
}

// refuse resets a stream whose other end did not keep to the rules.
func (h *halfStream) refuse(code http2.ErrCode) {
	id := h.id
	h.conn.say(func(c *conn) error { return c.framer.WriteRSTStream(id, code) })
	passed := code
	if h == h.stream.client {
		passed = http2.ErrCodeCancel
	}
	h.wasReset(passed)
}

// wasReset is when the other end of a stream wants no more of it.
func (h *halfStream) wasReset(code http2.ErrCode) {
	st := h.stream
	switch {
	case h.copy:
		if code != http2.ErrCodeNo {
			h.miss()
		}
		h.close()
	case h == st.client:
		for _, c := range st.copies {
			c.reset(code)
		}
		if st.up != nil {
			st.up.reset(code)
		}
		h.close()
	case code == http2.ErrCodeRefusedStream || (code == h.conn.refusal && !st.answered):
		h.close()
		if st.keeping {
			st.elsewhere(st.kept, st.backend)
		} else {
			st.client.reset(http2.ErrCodeRefusedStream)
		}
	default:
		h.close()
		st.client.reset(code)
	}
}

// taken ends the question whether the server took a request. It says no when that is known not to be so.
func (h *halfStream) taken() bool {
	if h.asked == nil {
		return true
	}
	answered := h.asked
	h.asked = nil
	if answered() {
		return true
	}
	h.asked = func() bool { return false }
	return false
}

// untaken is when a server has become silent that has not taken a request.
func (h *halfStream) untaken() {
	r := h.conn.router
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.closed {
		return
	}
	id := h.id
	h.conn.say(func(c *conn) error { return c.framer.WriteRSTStream(id, http2.ErrCodeCancel) })
	h.close()
	h.stream.again(nil)
}

// lost is when the connection of a stream that was begun has ended.
func (h *halfStream) lost() {
	st, c := h.stream, h.conn
	if h.copy {
		h.miss()
		h.close()
		return
	}
	untaken := !h.taken() || c.foreign() || (c.backend.Again != nil && c.backend.Again(st.method, c.err))
	h.close()
	switch {
	case h.heard:
		st.client.reset(http2.ErrCodeNo)
	case st.answered:
		st.client.reset(http2.ErrCodeInternal)
	case untaken:
		st.again(nil)
	case len(st.kept) == 1 && st.kept[0].end && h.id > 1: // the connection was just being closed
		st.again(st.backend)
	default:
		st.answer(502, "")
	}
}

// again sends a request once more that was sent, if all of it is there.
func (st *stream) again(backend *Backend) {
	switch {
	case st.strict && backend == nil:
		st.answer(503, unavailable)
	case st.keeping:
		st.elsewhere(st.kept, backend)
	default:
		st.answer(502, "")
	}
}

// move sends a stream elsewhere that was not begun: once more the same backend, or to the app when again is nil.
func (h *halfStream) move(again *Backend) {
	queue := h.queue
	h.queue = nil
	for i := range queue {
		h.weigh(&queue[i], -1)
	}
	h.close()
	h.stream.elsewhere(queue, again)
}

// elsewhere sends a request once more.
func (st *stream) elsewhere(request []item, again *Backend) {
	if st.client.closed {
		st.drop(request)
		return
	}
	if st.tries++; st.tries > 1 {
		again = nil
	}
	app := st.router.config.App
	switch {
	case again != nil:
	case st.backend == app:
		st.drop(request)
		st.answer(502, "")
		return
	case st.strict:
		st.drop(request)
		st.answer(503, unavailable)
		return
	default:
		again = app
		st.forget()
	}
	st.join(again)
	for _, it := range request {
		it.data = it.data[:len(it.data):len(it.data)] // nothing is to be joined to what is kept
		st.up.push(it)
	}
}

// drop lets the client send as much more as there is of a request that goes nowhere.
func (st *stream) drop(request []item) {
	for _, it := range request {
		if it.owed {
			st.client.credit(int64(len(it.data)))
		}
	}
}

const unavailable = "detour: the laptop that intercepts this request is unreachable\n"

// answer answers in place of a server.
func (st *stream) answer(status int, text string) {
	fields := []hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(status)}}
	if text == "" {
		st.client.push(item{fields: fields, end: true})
	} else {
		fields = append(fields, hpack.HeaderField{Name: "content-type", Value: "text/plain"}, hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(len(text))})
		st.client.push(item{fields: fields})
		st.client.push(item{data: []byte(text), end: true})
	}
	if st.watch != nil {
		st.watch.Answered(status)
	}
	if !st.client.heard {
		st.client.reset(http2.ErrCodeNo)
	}
}

// drop gives up a copy.
func (h *halfStream) drop() {
	if h.closed {
		return
	}
	h.miss()
	if h.id != 0 {
		id := h.id
		h.conn.say(func(c *conn) error { return c.framer.WriteRSTStream(id, http2.ErrCodeCancel) })
	}
	h.close()
}

// miss counts a copy that did not get there whole, and that its server wanted. A server that never said anything in HTTP/2 has taken none.
func (h *halfStream) miss() {
	if !h.heard && (!h.ended || !h.conn.settled) {
		h.conn.backend.Lost(1)
	}
}
