package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/socket"
	"github.com/detour-dev/detour/pkg/traffic/route"
)

// http2Server routes HTTP/2 without TLS, gRPC among it, stream by stream. HTTP/2 says its messages in frames that mean one thing
// only, so the library's reverse proxy can take it apart and put it together again.
type http2Server struct {
	agent  *agent
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	start  sync.Once
	once   sync.Once
	done   sync.WaitGroup
	app    transport
	ctx    context.Context // of what outlives its client: copies
	cancel context.CancelFunc

	mu   sync.Mutex
	open map[*upstreamConn]struct{} // to laptops and to the app
}

// upstreamConn is a pooled connection of a target, or of the app.
type upstreamConn struct {
	net.Conn
	of     *target
	client *secured // whose it is alone; nil where clients share it
	server *http2Server
}

// NetConn is the connection below.
func (c *upstreamConn) NetConn() net.Conn { return c.Conn }

func (c *upstreamConn) Close() error {
	c.server.mu.Lock()
	delete(c.server.open, c)
	c.server.mu.Unlock()
	return c.Conn.Close()
}

// keep remembers a connection that is pooled. One that comes after the end is closed.
func (s *http2Server) keep(c net.Conn, of *target, client *secured) net.Conn {
	kept := &upstreamConn{Conn: c, of: of, client: client, server: s}
	s.mu.Lock()
	s.open[kept] = struct{}{}
	s.mu.Unlock()
	if s.ctx.Err() != nil {
		_ = kept.Close()
	}
	return kept
}

// closeUpstreams closes some of the pooled connections.
func (s *http2Server) closeUpstreams(which func(*upstreamConn) bool) {
	s.mu.Lock()
	var closing []*upstreamConn
	for c := range s.open {
		if which(c) {
			closing = append(closing, c)
		}
	}
	s.mu.Unlock()
	for _, c := range closing {
		_ = c.Close()
	}
}

// transport keeps connections to one upstream.
type transport interface {
	http.RoundTripper
	CloseIdleConnections()
}

// http2Conn is a client's connection, with what was read of it before.
type http2Conn struct {
	net.Conn
	agent  *agent
	first  []byte
	port   uint16
	frames frameWriter
	gone   chan struct{}
	once   sync.Once
}

func (c *http2Conn) Write(b []byte) (int, error) {
	if err := c.frames.write(c.Conn, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// review asks the client to open another connection when the pod ends. Which laptop or app gets a stream is decided for each.
func (c *http2Conn) review() {
	if c.agent.podEnding.Load() {
		c.frames.ask(c.Conn)
	}
}

func (c *http2Conn) Read(b []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

func (c *http2Conn) Close() error {
	c.once.Do(func() { close(c.gone) })
	return c.Conn.Close()
}

type clientKey struct{}

// drainTimeout is how long a stream may go on after its intercept has ended.
const drainTimeout = 10 * time.Second

// idleTimeout ends pooled connections that nobody uses any more.
const idleTimeout = time.Minute

const maxStreams = 1 << 20 // how many there may be at once the app says

func newHTTP2Server(a *agent) *http2Server {
	s := &http2Server{agent: a, conns: make(chan net.Conn), closed: make(chan struct{}), open: map[*upstreamConn]struct{}{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s.server = &http.Server{
		Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, clientKey{}, c) },
		Handler: &httputil.ReverseProxy{
			Rewrite:       rewrite,
			FlushInterval: -1,
			Transport:     s,
			ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
				if r.Context().Err() == nil {
					a.log.Debug("a request of HTTP/2 failed", "err", err)
				}
				w.WriteHeader(http.StatusBadGateway)
			},
		},
	}
	s.app = newTransport(func(ctx context.Context) (net.Conn, error) {
		client, _ := ctx.Value(clientKey{}).(*http2Conn)
		if client == nil {
			return nil, errors.New("no client")
		}
		c, err := a.dialApp(ctx, client, client.port)
		if err != nil {
			return nil, err
		}
		return s.keep(socket.New(c), nil, nil), nil
	})
	return s
}

// rewrite leaves the request as it is, but for the address: that of the pool of connections to use.
func rewrite(r *httputil.ProxyRequest) {
	client, _ := r.In.Context().Value(clientKey{}).(*http2Conn)
	local := "app"
	if client != nil {
		local = client.LocalAddr().String()
	}
	out := *r.In.URL
	r.Out.URL = &out
	r.Out.URL.Host = local
	r.Out.Host = r.In.Host
	if _, ok := r.In.Header["User-Agent"]; !ok {
		r.Out.Header["User-Agent"] = nil // none is none
	}
	if te := r.In.Header.Get("Te"); te == "trailers" {
		r.Out.Header.Set("Te", te) // gRPC insists
	}
}

// newTransport speaks HTTP/2 without TLS over connections that dial opens.
func newTransport(dial func(context.Context) (net.Conn, error)) transport {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Transport{
		Protocols: protocols, DisableCompression: true, IdleConnTimeout: idleTimeout,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
}

// RoundTrip asks the laptop whose match a request meets, or the app.
func (s *http2Server) RoundTrip(r *http.Request) (*http.Response, error) {
	client, _ := r.Context().Value(clientKey{}).(*http2Conn)
	if client == nil {
		return nil, errors.New("no client")
	}
	request := &route.Request{Method: r.Method, Target: r.URL.RequestURI(), Values: r.Header.Values}
	owner, want := s.agent.choose(client.port, request)
	seen := s.agent.see(client.port, r.Method, r.URL.EscapedPath())
	seen.owned(owner)
	for _, tap := range s.agent.tapped(client.port, request) {
		seen.copied(tap)
		s.tap(r, tap, client)
	}
	answer, got, err := s.ask(r, want, client)
	if seen == nil {
		return answer, err
	}
	if !errors.Is(err, errLaptop) {
		seen.went(owner, got)
	}
	if err != nil {
		if r.Context().Err() == nil {
			seen.answered(http.StatusBadGateway) // see ErrorHandler
		}
		seen.end()
		return answer, err
	}
	seen.answered(answer.StatusCode)
	answer.Body = &watched{ReadCloser: answer.Body, answer: answer, seen: seen}
	return answer, nil
}

// watched is a body whose end is that of a request that somebody wants to see.
type watched struct {
	io.ReadCloser
	once   sync.Once
	answer *http.Response
	seen   *seen
}

func (w *watched) Close() error {
	err := w.ReadCloser.Close()
	w.once.Do(func() {
		w.seen.grpc(w.answer)
		w.seen.end()
	})
	return err
}

// ask asks a laptop, or the app when want is nil or cannot be had, and says whom in the end.
func (s *http2Server) ask(r *http.Request, want *target, client *http2Conn) (*http.Response, *target, error) {
	if want == nil {
		answer, err := s.to(nil, r, client).RoundTrip(r)
		return answer, nil, err
	}
	var asked question
	ctx, cancel := context.WithCancel(r.Context())
	first := r.Clone(httptrace.WithClientTrace(ctx, asked.trace(cancel)))
	body := keepBody(r)
	if body != nil {
		first.Body = body
	}
	answer, err := s.to(want, first, client).RoundTrip(first)
	switch {
	case !asked.answered():
		if err == nil {
			_ = answer.Body.Close()
		}
		err = fmt.Errorf("%w: it has fallen silent", errLaptop)
	case repeatable(r.Method, err):
		err = errors.Join(errLaptop, err)
	}
	if err != nil {
		cancel()
	}
	if errors.Is(err, errLaptop) && !want.ErrorOnFailure && body.forApp(r) {
		answer, err = s.to(nil, r, client).RoundTrip(r)
		return answer, nil, err
	}
	body.taken()
	return answer, want, err
}

// to is the way to a laptop, or to the app when t is nil, for a client's request.
func (s *http2Server) to(t *target, r *http.Request, client *http2Conn) transport {
	r.URL.Scheme = "http"
	if own := securedOf(client); own != nil {
		if t == nil || !t.LocalPlaintext {
			r.URL.Scheme = "https"
		}
		return own.transport(t, r, client)
	}
	if t == nil {
		return s.app
	}
	t.connect(s.agent, client)
	return t.transport
}

// tap sends a copy of a request to a laptop, of the body as much as it takes in time, and drops the answer.
func (s *http2Server) tap(r *http.Request, t *target, client *http2Conn) {
	// The copy outlives the request by as long as it takes to hand over what was gathered.
	ctx, cancel := context.WithTimeout(s.ctx, tapTimeout)
	theirs := r.Clone(ctx)
	copied := s.agent.newTapBuffer(t)
	copied.begin()
	theirs.Body = copied
	if r.Body == nil || r.Body == http.NoBody {
		theirs.Body = http.NoBody
		copied.end()
	} else {
		r.Body = &teed{ReadCloser: r.Body, tap: copied}
	}
	s.agent.conns.Go(func() {
		defer cancel()
		answer, err := s.to(t, theirs, client).RoundTrip(theirs)
		if err != nil {
			copied.drop(err)
			s.agent.log.Debug("a copy was dropped", "intercept", t.Uid, "err", err)
			return
		}
		_, _ = io.Copy(io.Discard, answer.Body)
		_ = answer.Body.Close()
		copied.complete()
	})
}

// connect makes the transport to a laptop.
func (t *target) connect(a *agent, client net.Conn) {
	t.pool.Do(func() {
		t.transport = newTransport(func(ctx context.Context) (net.Conn, error) {
			c, err := a.dialRelay(ctx, t, client)
			if err != nil {
				return nil, errors.Join(errLaptop, err)
			}
			return a.http2.keep(c, t, nil), nil
		})
	})
}

// drop forgets an intercept that has ended. What is under way has as long to finish as the laptop gives it.
func (s *http2Server) drop(t *target) {
	t.pool.Do(func() {})
	if t.transport == nil {
		return
	}
	t.transport.CloseIdleConnections()
	time.AfterFunc(drainTimeout, func() { s.closeUpstreams(func(c *upstreamConn) bool { return c.of == t }) })
}

// serve carries one connection to its end.
func (s *http2Server) serve(ctx context.Context, client net.Conn, port uint16, first []byte) {
	s.start.Do(func() { s.done.Go(func() { _ = s.server.Serve(s) }) })
	c := &http2Conn{Conn: socket.New(client), agent: s.agent, first: first, port: port, gone: make(chan struct{})}
	s.agent.framed.Store(c, nil)
	defer s.agent.framed.Delete(c)
	c.review()
	select {
	case s.conns <- c:
		<-c.gone
	case <-ctx.Done():
	case <-s.closed:
	}
}

// Accept, Close and Addr make it a net.Listener of the connections that are given to serve.
func (s *http2Server) Accept() (net.Conn, error) {
	select {
	case c := <-s.conns:
		return c, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (s *http2Server) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Addr implements net.Listener.
func (s *http2Server) Addr() net.Addr { return &net.TCPAddr{} }

func (s *http2Server) close() {
	s.start.Do(func() {})
	s.cancel()
	_ = s.server.Close()
	_ = s.Close()
	s.done.Wait()
	s.closeUpstreams(func(*upstreamConn) bool { return true })
}
