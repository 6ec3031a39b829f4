package http2

import (
	"bytes"
	"slices"
	"strconv"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// stream is a request and its answer: on the client's connection, on a backend's, and on those of
// the backends that get copies.
type stream struct {
	router   *Router
	client   *halfStream
	up       *halfStream // nil until the backend is chosen
	copies   []*halfStream
	method   string
	backend  *Backend
	strict   bool // no other backend may answer
	tries    int
	answered bool   // the backend's final answer has begun
	grpc     string // the grpc-status of the answer
	watch    Watcher
	replay   replayBuffer
}

// replayBuffer holds a request that may have to be sent again.
type replayBuffer struct {
	active   bool
	items    []item // the request so far
	size     int    // of the items, in bytes
	bodySize int    // of the whole body so far, in bytes
}

// halfStream is a stream on one of its connections.
type halfStream struct {
	conn        *conn
	stream      *stream
	id          uint32 // 0 until the stream begins on the connection
	copy        bool
	closed      bool
	resetByPeer bool // the other end has sent RST_STREAM
	send        sendState
	recv        recvState
	stall       *time.Timer // of a copy
	delivered   func() bool // see Backend.Track; nil when no request is tracked
}

// sendState is what is to be sent on a halfStream.
type sendState struct {
	queue       []item
	scheduled   bool  // in one of the connection's queues
	resetQueued bool  // the queue ends with a reset
	resetNow    bool  // the reset does not wait for data that waits for a window
	window      int64 // bytes that the other end allows
	ended       bool  // END_STREAM or RST_STREAM was sent
}

// recvState is what is received on a halfStream.
type recvState struct {
	window   int64 // bytes that the other end may send
	held     int64 // bytes received and not passed on
	target   int64 // of window and held together, where there is room
	bodyLeft int64 // bytes of the body by its content-length; negative when there is none
	ended    bool  // END_STREAM was received
}

// newHalf returns the stream's half on a connection.
func (st *stream) newHalf(c *conn) *halfStream {
	c.streams.users++
	return &halfStream{conn: c, stream: st, recv: recvState{bodyLeft: -1}}
}

// source returns the half that the data for h comes from.
func (h *halfStream) source() *halfStream {
	if h == h.stream.client {
		return h.stream.up
	}
	return h.stream.client
}

// sendTo sends the request to a backend.
func (st *stream) sendTo(backend *Backend) {
	st.backend = backend
	st.countParked(-1)
	st.up = st.newHalf(st.router.connTo(backend))
	st.countParked(1)
}

// countReplay counts n more bytes of requests that may be sent again.
func (r *Router) countReplay(n int) {
	r.replayBytes += n
	r.countHeld(int64(n))
}

// fromClient passes on what the client has sent.
func (st *stream) fromClient(it item) {
	st.client.recv.ended = it.end
	alias := it
	alias.owed = false
	alias.data = it.data[:len(it.data):len(it.data)]
	for _, c := range st.copies {
		c.enqueue(alias)
	}
	if st.replay.active {
		n := alias.size()
		if st.replay.bodySize += len(it.data); st.replay.bodySize > maxReplayBody ||
			st.router.replayBytes+n > maxReplay {
			st.stopReplay()
		} else {
			st.replay.items = add(st.replay.items, alias)
			st.replay.size += n
			st.router.countReplay(n)
		}
	}
	if st.up != nil {
		st.up.enqueue(it)
	} else if it.owed {
		st.client.credit(int64(len(it.data))) // the Router answered the request itself
	}
	st.client.closeIfDone()
}

// stopReplay drops what was stored of the request, and stores no more.
func (st *stream) stopReplay() {
	st.replay.active = false
	st.freeReplay()
}

// freeReplay drops what was stored of the request.
func (st *stream) freeReplay() {
	st.router.countReplay(-st.replay.size)
	st.replay.items, st.replay.size = nil, 0
}

// handleHeaders handles a header block on a stream that exists: an answer, or trailers.
func (h *halfStream) handleHeaders(f *http2.MetaHeadersFrame) error {
	st, end := h.stream, f.StreamEnded()
	if h.recv.ended {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeStreamClosed}
	}
	trailers := h == st.client || (h == st.up && st.answered)
	if err := h.checkHeaders(f, trailers); err != nil {
		return err
	}
	switch {
	case h.copy:
		h.receivedEnd(end)
		return nil
	case h == st.client:
		st.fromClient(item{fields: f.Fields, end: true})
		return nil
	case !h.confirmDelivery():
		return nil // deliveryFailed follows
	}
	if !trailers {
		if err := h.handleStatus(f); err != nil {
			return err
		}
	}
	if end {
		st.noteGRPCStatus(f.Fields)
	}
	st.client.enqueue(item{fields: f.Fields, end: end})
	h.receivedEnd(end)
	return nil
}

// checkHeaders checks the rules of RFC 9113, sections 8.1 and 8.2.2, and the memory for the fields.
func (h *halfStream) checkHeaders(f *http2.MetaHeadersFrame, trailers bool) error {
	malformed := http2.StreamError{StreamID: h.id, Code: http2.ErrCodeProtocol}
	if slices.ContainsFunc(f.RegularFields(), isConnectionField) || f.Truncated {
		return malformed
	}
	if trailers && (!f.StreamEnded() || len(f.PseudoFields()) > 0 || h.recv.bodyLeft > 0) {
		return malformed
	}
	if !h.copy && h.stream.router.fieldsOverBudget(f.Fields) {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeEnhanceYourCalm}
	}
	return nil
}

// handleStatus handles the status of a backend's answer. After a final status the request is not
// sent again.
func (h *halfStream) handleStatus(f *http2.MetaHeadersFrame) error {
	st := h.stream
	status, err := strconv.Atoi(f.PseudoValue("status"))
	if err != nil || status < 100 || status > 999 || (status < 200 && f.StreamEnded()) {
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeProtocol}
	}
	if status < 200 {
		return nil
	}
	st.answered = true
	st.stopReplay()
	if st.watch != nil {
		st.watch.Answered(status)
	}
	return nil
}

func (st *stream) noteGRPCStatus(fields []hpack.HeaderField) {
	for _, field := range fields {
		if field.Name == "grpc-status" {
			st.grpc = field.Value
		}
	}
}

// handleBody handles the data of a DATA frame.
func (h *halfStream) handleBody(b []byte, end bool) error {
	st := h.stream
	if len(b) == 0 && !end {
		return nil
	}
	switch {
	case h.copy:
		h.credit(int64(len(b)))
		h.receivedEnd(end)
	case h == st.client:
		st.fromClient(item{data: bytes.Clone(b), end: end, owed: true})
	case !st.answered:
		h.conn.credit(int64(len(b)))
		return http2.StreamError{StreamID: h.id, Code: http2.ErrCodeProtocol}
	default:
		st.client.enqueue(item{data: bytes.Clone(b), end: end, owed: true})
		h.receivedEnd(end)
	}
	return nil
}

// receivedEnd notes that a backend has sent everything, if end.
func (h *halfStream) receivedEnd(end bool) {
	if !end {
		return
	}
	h.recv.ended = true
	if h.copy && !h.send.ended {
		h.queueReset(http2.ErrCodeNo) // the backend needs no more of the request
		return
	}
	h.closeIfDone()
}

// closeIfDone closes a stream on which both directions have ended.
func (h *halfStream) closeIfDone() {
	if h.send.ended && h.recv.ended {
		h.close()
	}
}

// close removes the stream from its connection.
func (h *halfStream) close() {
	if h.closed {
		return
	}
	h.discard(h.send.queue)
	h.closed = true
	h.send.queue = nil
	if h.stall != nil {
		h.stall.Stop()
	}
	_ = h.confirmDelivery()
	c := h.conn
	c.streams.users--
	c.sweep()
	if h.id != 0 {
		delete(c.streams.byID, h.id)
		if c.backend == nil && !h.recv.ended && !h.resetByPeer {
			c.streams.resetByUs.add(h.id)
		}
		if c.backend != nil {
			c.streams.open--
			c.admit()
		}
	}
	c.finishIfUnused()
	if h == h.stream.client {
		h.stream.clientDone()
	}
}

// clientDone ends the other halves when the client expects nothing more.
func (st *stream) clientDone() {
	if st.watch != nil {
		st.watch.Ended(st.grpc)
	}
	st.freeReplay()
	if st.client.recv.ended {
		return
	}
	if st.up != nil {
		st.up.queueReset(http2.ErrCodeCancel) // no effect after another reset
	}
	for _, c := range st.copies {
		c.queueReset(http2.ErrCodeCancel)
	}
}

// queueReset sends a reset. If the whole message is sent or queued and the code is NO_ERROR, the
// message goes first. Otherwise only data that needs not wait for a window goes first.
func (h *halfStream) queueReset(code http2.ErrCode) {
	if h.closed || h.send.resetQueued {
		return
	}
	if h.id == 0 && !h.copy { // a copy still sends what there is of the original
		h.close()
		return
	}
	whole := h.send.ended || (len(h.send.queue) > 0 && h.send.queue[len(h.send.queue)-1].end)
	h.send.resetQueued = true
	h.send.resetNow = !whole || code != http2.ErrCodeNo
	h.send.queue = append(h.send.queue, item{reset: true, code: code})
	if h.send.resetNow {
		h.send.scheduled = false // it may be in the blocked queue
	}
	h.schedule()
}

// refuse resets a stream whose peer broke the rules.
func (h *halfStream) refuse(code http2.ErrCode) {
	id := h.id
	h.conn.sendControl(func(c *conn) error { return c.framer.WriteRSTStream(id, code) })
	passed := code
	if h == h.stream.client {
		passed = http2.ErrCodeCancel
	}
	h.handleReset(passed)
}

// handleReset handles a reset by the peer.
func (h *halfStream) handleReset(code http2.ErrCode) {
	st := h.stream
	switch {
	case h.copy:
		if code != http2.ErrCodeNo {
			h.countMissed()
		}
		h.close()
	case h == st.client:
		for _, c := range st.copies {
			c.queueReset(code)
		}
		if st.up != nil {
			st.up.queueReset(code)
		}
		h.close()
	case code == http2.ErrCodeRefusedStream || (code == h.conn.refusal && !st.answered):
		h.close()
		if st.replay.active {
			st.resend(st.replay.items, st.backend)
		} else {
			st.client.queueReset(http2.ErrCodeRefusedStream)
		}
	default:
		h.close()
		st.client.queueReset(code)
	}
}

// confirmDelivery ends the tracking of a request. It returns false when the server is known not to
// have taken the request.
func (h *halfStream) confirmDelivery() bool {
	if h.delivered == nil {
		return true
	}
	answered := h.delivered
	h.delivered = nil
	if answered() {
		return true
	}
	h.delivered = func() bool { return false }
	return false
}

// deliveryFailed sends a request elsewhere whose server has fallen silent before it took the
// request. It locks mu itself.
func (h *halfStream) deliveryFailed() {
	r := h.conn.router
	r.mu.Lock()
	defer r.mu.Unlock()
	if h.closed {
		return
	}
	id := h.id
	h.conn.sendControl(func(c *conn) error { return c.framer.WriteRSTStream(id, http2.ErrCodeCancel) })
	h.close()
	h.stream.retry(nil)
}

// connectionLost handles the end of the connection of a stream that has begun.
func (h *halfStream) connectionLost() {
	st, c := h.stream, h.conn
	if h.copy {
		h.countMissed()
		h.close()
		return
	}
	notTaken := !h.confirmDelivery() || c.spokeNoHTTP2() || (c.backend.MayRetry != nil && c.backend.MayRetry(st.method,
		c.state.err))
	h.close()
	switch {
	case h.recv.ended:
		st.client.queueReset(http2.ErrCodeNo)
	case st.answered:
		st.client.queueReset(http2.ErrCodeInternal)
	case notTaken:
		st.retry(nil)
	case len(st.replay.items) == 1 && st.replay.items[0].end && h.id > 1: // the server was closing an idle connection
		st.retry(st.backend)
	default:
		st.answerSelf(502, "")
	}
}

// retry sends a request again, if all of it is stored. A nil backend means App.
func (st *stream) retry(backend *Backend) {
	switch {
	case st.strict && backend == nil:
		st.answerSelf(503, unavailable)
	case st.replay.active:
		st.resend(st.replay.items, backend)
	default:
		st.answerSelf(502, "")
	}
}

// moveTo sends a request that has not begun to another connection of the same backend, or to App
// when again is nil.
func (h *halfStream) moveTo(again *Backend) {
	queue := h.send.queue
	h.send.queue = nil
	for i := range queue {
		h.countFields(&queue[i], -1)
	}
	h.close()
	h.stream.resend(queue, again)
}

// resend sends a request to a backend, or to App when backend is nil. A request is sent to the same
// backend at most twice.
func (st *stream) resend(request []item, again *Backend) {
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
		st.answerSelf(502, "")
		return
	case st.strict:
		st.drop(request)
		st.answerSelf(503, unavailable)
		return
	default:
		again = app
		st.stopReplay()
	}
	st.sendTo(again)
	for _, it := range request {
		it.data = it.data[:len(it.data):len(it.data)] // enqueue must not append to the stored data
		st.up.enqueue(it)
	}
}

// drop returns the window of a request that goes nowhere to the client.
func (st *stream) drop(request []item) {
	for _, it := range request {
		if it.owed {
			st.client.credit(int64(len(it.data)))
		}
	}
}

const unavailable = "detour: the laptop that intercepts this request is unreachable\n"

// answerSelf answers in place of a backend.
func (st *stream) answerSelf(status int, text string) {
	fields := []hpack.HeaderField{{Name: ":status", Value: strconv.Itoa(status)}}
	if text == "" {
		st.client.enqueue(item{fields: fields, end: true})
	} else {
		fields = append(fields,
			hpack.HeaderField{Name: "content-type", Value: "text/plain"},
			hpack.HeaderField{Name: "content-length", Value: strconv.Itoa(len(text))})
		st.client.enqueue(item{fields: fields})
		st.client.enqueue(item{data: []byte(text), end: true})
	}
	if st.watch != nil {
		st.watch.Answered(status)
	}
	if !st.client.recv.ended {
		st.client.queueReset(http2.ErrCodeNo)
	}
}

// drop ends a copy.
func (h *halfStream) drop() {
	if h.closed {
		return
	}
	h.countMissed()
	if h.id != 0 {
		id := h.id
		h.conn.sendControl(func(c *conn) error { return c.framer.WriteRSTStream(id, http2.ErrCodeCancel) })
	}
	h.close()
}

// countMissed counts a copy that did not arrive whole although its backend wanted it. A backend
// that never sent SETTINGS has received no copy.
func (h *halfStream) countMissed() {
	if !h.recv.ended && (!h.send.ended || !h.conn.state.settled) {
		h.conn.backend.Lost(1)
	}
}
