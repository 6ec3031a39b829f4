// Package http2 sends each request of an HTTP/2 client to the backend that it belongs to, and the
// answers back to the client. It passes frames on: the order of fields, informational answers,
// trailers and the codes of resets stay as they were sent. Settings, flow control and the
// compression of fields belong to each connection alone. The rules are those of RFC 9113. Start
// with Router.
package http2

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// Config describes a Router.
type Config struct {
	// App is the server that the client has connected to. It gets the requests that no other
	// backend takes. The client sees its settings, and the client's connection ends with App's.
	App *Backend
	// Host, if not nil, replaces App for the whole connection while it is reachable. The client
	// sees Host's settings, and the Router dials App only when it needs App.
	Host *Backend
	// Route decides where a request goes.
	Route func(*Request) Route
	// Go runs a function that may outlive Serve, such as the sending of copies. The owner of the
	// Router waits for it.
	Go func(func())
}

// Backend is a server that requests of one client can go to.
type Backend struct {
	// Dial opens a connection that speaks HTTP/2. When it fails, nothing was sent.
	Dial func(context.Context) (net.Conn, error)
	// Life ends when the backend takes no further requests. Requests that have begun get time to
	// end.
	Life context.Context
	// Track, if not nil, is called before a request is sent on a connection. It calls onLost, from
	// another goroutine, when the server has fallen silent without taking the request. confirm ends
	// that, and returns false when onLost was or will be called.
	Track func(c net.Conn, onLost func()) (confirm func() bool)
	// MayRetry, if not nil, reports whether App may get a request that the server may have taken,
	// after the connection ended with err.
	MayRetry func(method string, err error) bool
	// Lost counts the requests whose copies did not arrive whole. It is required for a backend that
	// gets copies.
	Lost func(uint64)
}

// Route is the decision where a request goes.
type Route struct {
	Backend *Backend // nil means App
	Strict  bool     // nowhere else
	Copies  []*Backend
	Watch   Watcher // may be nil
}

// Watcher is told what happens to a request. Its methods must not block.
type Watcher interface {
	Went(*Backend) // the last call counts
	Answered(status int)
	Ended(grpcStatus string) // empty when the answer has none
}

const (
	// maxFields bounds the fields of a request or an answer, in bytes as RFC 9113, section 6.5.2,
	// counts them. heldFields bounds the fields of all that waits.
	maxFields  = 4 << 20
	heldFields = 4 << 20
	// maxStreams bounds the requests of a client that have begun and not ended. A lower limit of
	// App applies instead.
	maxStreams = 1 << 12
	// maxReplayBody bounds the body of a request that may be sent again, and maxReplay the bytes of
	// all such requests.
	maxReplayBody = 64 << 10
	maxReplay     = 4 << 20
	// copyLimit bounds the bytes that wait for one backend that gets copies, and copiesTogether
	// those of the whole agent. Beyond the bounds a copy is dropped: a copy never slows the
	// original.
	copyLimit      = 256 << 10
	copiesTogether = 4 << 20
	// copyStall is how long such a backend may read nothing.
	copyStall = 3 * time.Second
	// drainTimeout is how long a request may go on after the Life of its backend.
	drainTimeout = 10 * time.Second
	// lingering is how long a connection that ends may take to send its last bytes.
	lingering = time.Second
	// settingsTimeout is how long the client waits for App's settings before it gets default ones.
	settingsTimeout = time.Second
)

// Router serves one client.
type Router struct {
	config Config
	ctx    context.Context

	// mu guards the fields below, and all connections and streams of the Router. A function of this
	// package that does not lock mu itself needs it held, unless its comment says otherwise.
	mu           sync.Mutex
	client       *conn
	backends     map[*Backend]*conn // connections that take new requests
	conns        map[*conn]struct{}
	held         int64 // bytes of all kinds that wait
	fieldBytes   int   // bytes of fields that wait
	replayBytes  int   // bytes of requests that may have to be sent again
	settingsSent bool  // to the client
	ended        bool  // the client has gone
	leaveAsked   bool  // Leave was called
}

// New returns a Router for a client's connection, which it owns from then on. ctx ends everything.
// The caller must call Serve.
func New(ctx context.Context, client net.Conn, config Config) *Router {
	if config.Host == nil {
		config.Host = config.App
	}
	r := &Router{config: config, ctx: ctx, backends: map[*Backend]*conn{}, conns: map[*conn]struct{}{}}
	r.client = r.newConn(nil)
	r.client.attach(client)
	return r
}

// Serve serves the client until its connection ends. It locks mu itself.
func (r *Router) Serve() {
	shared.switches.Add(1)
	defer shared.switches.Add(-1)
	c := r.client
	stop := context.AfterFunc(r.ctx, func() { _ = c.netConn.Close() })
	defer stop()
	r.mu.Lock()
	r.connTo(r.config.Host) // without the agent the client would be connected there by now
	r.mu.Unlock()
	settings := time.AfterFunc(settingsTimeout, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.sendClientSettings(nil)
	})
	defer settings.Stop()
	var writing sync.WaitGroup
	writing.Go(func() { c.sendLoop() })
	c.receiveLoop()
	r.mu.Lock()
	c.finish()
	r.mu.Unlock()
	writing.Wait()
	_ = c.netConn.Close()
	r.mu.Lock()
	r.clientGone()
	r.countHeld(-r.held)
	r.ended = true
	r.mu.Unlock()
}

// Leave asks the client to open another connection for its next requests. The Router still serves
// the requests that have begun and those that cross the frame. It locks mu itself.
func (r *Router) Leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leaveLocked()
}

func (r *Router) leaveLocked() {
	r.leaveAsked = true
	if !r.settingsSent || r.client.state.goawaySent {
		return
	}
	r.client.state.goawaySent = true
	r.client.sendControl(func(c *conn) error { return c.framer.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil) })
}

// sendClientSettings sends the client its settings: Host's, as far as they are Host's to decide.
// The first SETTINGS frame has to be complete, because some clients ignore later ones.
func (r *Router) sendClientSettings(host map[http2.SettingID]uint32) {
	settings := []http2.Setting{}
	for _, id := range []http2.SettingID{http2.SettingMaxHeaderListSize, http2.SettingEnableConnectProtocol} {
		if v, ok := host[id]; ok {
			settings = append(settings, http2.Setting{ID: id, Val: v})
		}
	}
	c := r.client
	most, ok := host[http2.SettingMaxConcurrentStreams]
	if most = min(most, maxStreams); !ok {
		most = maxStreams
	}
	if ok || !r.settingsSent {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: most})
	} else {
		most = c.recv.promised
	}
	if r.settingsSent {
		if len(settings) > 0 {
			c.sendSettings(0, most, settings...)
		}
		return
	}
	r.settingsSent = true
	c.sendFirstSettings(most, settings...)
	if r.leaveAsked {
		r.leaveLocked()
	}
}

// connTo returns the connection to a backend, and opens one if there is none.
func (r *Router) connTo(backend *Backend) *conn {
	if c := r.backends[backend]; c != nil {
		return c
	}
	c := r.newConn(backend)
	r.backends[backend] = c
	r.conns[c] = struct{}{}
	r.config.Go(c.run)
	return c
}

// openStream begins a stream with a request of the client.
func (r *Router) openStream(f *http2.MetaHeadersFrame) error {
	c := r.client
	if f.StreamID%2 == 0 || f.StreamID <= c.streams.lastID {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.streams.lastID = f.StreamID
	if c.state.finishing {
		return nil
	}
	st := &stream{router: r}
	a := st.newHalf(c)
	st.client = a
	a.id, a.send.window, a.recv.window = f.StreamID, c.limits.initialWindow, c.recv.granted
	c.streams.byID[a.id] = a
	req, err := parseRequest(f)
	switch {
	case f.Truncated:
		a.recv.ended = f.StreamEnded()
		st.answerSelf(431, "")
		return nil
	case err != nil, f.HasPriority() && f.Priority.StreamDep == f.StreamID: // see conn.handlePriority
		a.refuse(http2.ErrCodeProtocol)
		return nil
	case len(c.streams.byID) > int(c.recv.maxStreams) || r.fieldsOverBudget(f.Fields):
		a.refuse(http2.ErrCodeRefusedStream)
		return nil
	}
	a.recv.bodyLeft = req.length
	r.mu.Unlock() // only this goroutine, which reads the client's frames, changes the stream now
	route := r.config.Route(req)
	r.mu.Lock()
	if route.Backend == nil {
		route.Backend = r.config.App
	}
	st.method, st.backend, st.strict, st.watch = req.Method, route.Backend, route.Strict, route.Watch
	for _, backend := range route.Copies {
		st.copies = append(st.copies, r.copyTo(backend, a))
	}
	if st.backend != r.config.App {
		st.replay.active = true
	}
	st.sendTo(st.backend)
	st.fromClient(item{fields: f.Fields, end: f.StreamEnded()})
	return nil
}

// copyTo begins a copy of a client's stream to a backend.
func (r *Router) copyTo(backend *Backend, of *halfStream) *halfStream {
	c := of.stream.newHalf(r.connTo(backend))
	c.copy = true
	c.stall = newStall(c)
	return c
}

// clientGone ends everything after the client has gone. Copies that are complete are still sent.
func (r *Router) clientGone() {
	for _, a := range r.client.streams.byID {
		a.close()
	}
	for c := range r.conns {
		if c.backend.Lost != nil {
			c.drain()
		} else {
			c.finish()
		}
	}
}

// followApp ends the client's connection after App's has ended. It does not if a request goes to
// another backend, or if Host replaces App. It reports whether it did.
func (r *Router) followApp(c *conn) bool {
	if r.client.state.finishing || r.config.Host != r.config.App {
		return false
	}
	for _, a := range r.client.streams.byID {
		if a.stream.up == nil || a.stream.up.conn != c {
			return false
		}
	}
	last := r.client.streams.lastID
	r.client.sendControl(func(c *conn) error { return c.framer.WriteGoAway(last, http2.ErrCodeNo, nil) })
	r.client.finish()
	return true
}
