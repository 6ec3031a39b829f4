// Package http2 carries the requests of one HTTP/2 client to several servers, each to the one it belongs to, and their answers back. It
// passes frames on: fields in their order, informational answers, trailers and the codes of resets are those that were sent. What there
// is to each connection alone (settings, flow control, the compression of fields) each has for itself. The rules are those of RFC 9113.
package http2

import (
	"context"
	"net"
	"sync"
	"time"

	"golang.org/x/net/http2"
)

// Config is what a Router needs to know.
type Config struct {
	// App is where the client's connection led if nobody stood in between, and where goes what cannot go elsewhere: its settings are the
	// client's to see, and with its connection the client's ends.
	App *Backend
	// Host, where there is one, is who has all of the connection in the app's place, as long as it is there: the client sees its settings, and
	// the app is not asked for anything before it is needed.
	Host *Backend
	// Route says where a request goes.
	Route func(*Request) Route
	// Go runs what may outlive Serve: copies that are being handed over.
	Go func(func())
}

// Backend is a server that requests can go to, of one client.
type Backend struct {
	// Dial opens a connection that speaks HTTP/2. When it fails nothing has been sent.
	Dial func(context.Context) (net.Conn, error)
	// Over is done when nothing more goes this way. What is under way has time to end.
	Over context.Context
	// Ask, where there is one, is told that a request is about to be sent on a connection. It calls untaken, from elsewhere, if the server
	// has become silent and has not taken it; answered ends that, and says no when an answer will not do any more.
	Ask func(c net.Conn, untaken func()) (answered func() bool)
	// Again, where there is one, says whether a request may be sent to the app that the server may have, when the connection has ended so.
	Again func(method string, err error) bool
	// Lost counts requests whose copies do not get there whole, for a way that gets copies.
	Lost func(uint64)
}

// Route is where a request goes.
type Route struct {
	Backend *Backend // nil is the app's
	Strict  bool     // nowhere else
	Copies  []*Backend
	Watch   Watcher // nil when nobody wants to know
}

// Watcher hears what becomes of a request. It must not block.
type Watcher interface {
	Went(*Backend) // the last one counts
	Answered(status int)
	Ended(grpcStatus string) // empty when there is none
}

const (
	// maxFields bounds the fields of a request or an answer, in bytes as RFC 9113, 6.5.2 counts them, and heldFields those of all that wait.
	maxFields  = 4 << 20
	heldFields = 4 << 20
	// maxStreams bounds the requests of a client that are under way. If the app's own limit is lower, that holds.
	maxStreams = 1 << 12
	// keptBody bounds what is kept of a request's body to send it once more, and maxKept what is kept of all requests.
	keptBody = 64 << 10
	maxKept  = 4 << 20
	// copyLimit bounds what waits for a server that gets copies, in bytes, and copiesTogether what does in all of an agent. Beyond it a copy is dropped: the
	// original is never slowed.
	copyLimit      = 256 << 10
	copiesTogether = 4 << 20
	// copyStall is how long such a server may take nothing of what waits.
	copyStall = 3 * time.Second
	// drainTimeout is how long a request may go on after its way is over.
	drainTimeout = 10 * time.Second
	// lingering is how long it may take to hand over the last of a connection that ends.
	lingering = time.Second
	// settingsTimeout is how long the app may take to say its settings before the client gets others.
	settingsTimeout = time.Second
)

// Router serves one client.
type Router struct {
	config Config
	ctx    context.Context

	mu       sync.Mutex // guards all that follows, and the sides and streams
	client   *conn
	backends map[*Backend]*conn // that take new requests
	conns    map[*conn]struct{}
	held     int64 // bytes of all kinds that wait
	fields   int   // bytes of fields that wait
	kept     int   // bytes of requests that may have to be sent once more
	greeted  bool  // the client has got settings
	ended    bool  // the client has gone
	asked    bool  // the client was asked to leave
}

// New is a Router for a client's connection. Everything ends with ctx.
func New(ctx context.Context, client net.Conn, config Config) *Router {
	if config.Host == nil {
		config.Host = config.App
	}
	r := &Router{config: config, ctx: ctx, backends: map[*Backend]*conn{}, conns: map[*conn]struct{}{}}
	r.client = r.newConn(nil)
	r.client.use(client)
	return r
}

// Serve goes on until the client's connection ends.
func (r *Router) Serve() {
	shared.switches.Add(1)
	defer shared.switches.Add(-1)
	c := r.client
	stop := context.AfterFunc(r.ctx, func() { _ = c.netConn.Close() })
	defer stop()
	r.mu.Lock()
	r.to(r.config.Host) // where it would be by now
	r.mu.Unlock()
	greeting := time.AfterFunc(settingsTimeout, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.greet(nil)
	})
	defer greeting.Stop()
	var writing sync.WaitGroup
	writing.Go(func() { c.write() })
	c.read()
	r.mu.Lock()
	c.finish()
	r.mu.Unlock()
	writing.Wait()
	_ = c.netConn.Close()
	r.mu.Lock()
	r.end()
	r.holds(-r.held) // what is left goes
	r.ended = true
	r.mu.Unlock()
}

// Leave asks the client to open another connection for what it asks next. Everything that is under backend, and what crosses it, is served.
func (r *Router) Leave() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.leave()
}

func (r *Router) leave() {
	r.asked = true
	if !r.greeted || r.client.left {
		return
	}
	r.client.left = true
	r.client.say(func(c *conn) error { return c.framer.WriteGoAway(1<<31-1, http2.ErrCodeNo, nil) })
}

// greet says the settings to the client, with those of its host that are the host's to say. The first of them may come only once, because
// clients look no further.
func (r *Router) greet(host map[http2.SettingID]uint32) {
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
	if ok || !r.greeted {
		settings = append(settings, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: most})
	} else {
		most = c.promised
	}
	if r.greeted {
		if len(settings) > 0 {
			c.set(0, most, settings...)
		}
		return
	}
	r.greeted = true
	c.begins(most, settings...)
	if r.asked {
		r.leave()
	}
}

// to is the side of a backend, that is opened if need be.
func (r *Router) to(backend *Backend) *conn {
	if c := r.backends[backend]; c != nil {
		return c
	}
	c := r.newConn(backend)
	r.backends[backend] = c
	r.conns[c] = struct{}{}
	r.config.Go(c.run)
	return c
}

// opens begins a stream with a client's request.
func (r *Router) opens(f *http2.MetaHeadersFrame) error {
	c := r.client
	if f.StreamID%2 == 0 || f.StreamID <= c.last {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	c.last = f.StreamID
	if c.finishing {
		return nil
	}
	st := &stream{router: r}
	a := st.half(c)
	st.client = a
	a.id, a.window, a.given = f.StreamID, c.initial, c.granted
	c.streams[a.id] = a
	req, err := request(f)
	switch {
	case f.Truncated:
		a.heard = f.StreamEnded()
		st.answer(431, "")
		return nil
	case err != nil, f.HasPriority() && f.Priority.StreamDep == f.StreamID: // see side.priority
		a.refuse(http2.ErrCodeProtocol)
		return nil
	case len(c.streams) > int(c.limit) || r.overfull(f.Fields):
		a.refuse(http2.ErrCodeRefusedStream)
		return nil
	}
	a.left = req.length
	r.mu.Unlock() // nothing changes a client's stream but its reader
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
		st.keeping = true
	}
	st.join(st.backend)
	st.said(item{fields: f.Fields, end: f.StreamEnded()})
	return nil
}

// copyTo begins a copy of a client's stream.
func (r *Router) copyTo(backend *Backend, of *halfStream) *halfStream {
	c := of.stream.half(r.to(backend))
	c.copy = true
	c.stall = newStall(c)
	return c
}

// end is when the client has gone. Copies that are whole are handed over yet.
func (r *Router) end() {
	for _, a := range r.client.streams {
		a.close()
	}
	for c := range r.conns {
		if c.backend.Lost != nil {
			c.retire()
		} else {
			c.finish()
		}
	}
}

// lostApp ends the client's connection as the app's ended, unless something of it goes elsewhere or all of it should.
func (r *Router) lostApp(c *conn) bool {
	if r.client.finishing || r.config.Host != r.config.App {
		return false
	}
	for _, a := range r.client.streams {
		if a.stream.up == nil || a.stream.up.conn != c {
			return false
		}
	}
	last := r.client.last
	r.client.say(func(c *conn) error { return c.framer.WriteGoAway(last, http2.ErrCodeNo, nil) })
	r.client.finish()
	return true
}
