package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"sync"

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
}

// transport keeps connections to one upstream.
type transport interface {
	http.RoundTripper
	CloseIdleConnections()
}

// http2Conn is a client's connection, with what was read of it before.
type http2Conn struct {
	net.Conn
	first []byte
	port  uint16
	gone  chan struct{}
	once  sync.Once
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

const maxStreams = 1 << 20 // how many there may be at once the app says

func newHTTP2Server(a *agent) *http2Server {
	s := &http2Server{agent: a, conns: make(chan net.Conn), closed: make(chan struct{})}
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	s.server = &http.Server{
		Protocols: protocols, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: maxStreams},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, clientKey{}, c) },
		Handler: &httputil.ReverseProxy{
			Rewrite:       rewrite,
			FlushInterval: -1,
			Transport:     s,
			ErrorLog:      nil,
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
		return a.dialApp(ctx, client, client.port)
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
	r.Out.URL.Scheme, r.Out.URL.Host = "http", local
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
		Protocols: protocols, DisableCompression: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
	}
}

// RoundTrip asks the laptop whose match a request meets, or the app.
func (s *http2Server) RoundTrip(r *http.Request) (*http.Response, error) {
	client, _ := r.Context().Value(clientKey{}).(*http2Conn)
	if client == nil {
		return nil, errors.New("no client")
	}
	want := s.agent.choose(client.port, &route.Request{Method: r.Method, Target: r.URL.RequestURI(), Values: r.Header.Values})
	if want == nil {
		return s.app.RoundTrip(r)
	}
	want.pool.Do(func() {
		want.transport = newTransport(func(ctx context.Context) (net.Conn, error) {
			c, err := s.agent.dialLaptop(ctx, want, client)
			if err != nil {
				return nil, errors.Join(errLaptop, err)
			}
			return c, nil
		})
	})
	first := r.Clone(r.Context())
	if r.Body != nil {
		first.Body = io.NopCloser(r.Body) // nothing is read of it when the dial fails
	}
	answer, err := want.transport.RoundTrip(first)
	if errors.Is(err, errLaptop) && !want.ErrorOnFailure {
		return s.app.RoundTrip(r)
	}
	return answer, err
}

// drop forgets an intercept that has ended: what is under way is finished.
func (t *target) drop() {
	t.pool.Do(func() {})
	if t.transport != nil {
		t.transport.CloseIdleConnections()
	}
}

// serve carries one connection to its end.
func (s *http2Server) serve(ctx context.Context, client net.Conn, port uint16, first []byte) {
	s.start.Do(func() { s.done.Go(func() { _ = s.server.Serve(s) }) })
	c := &http2Conn{Conn: client, first: first, port: port, gone: make(chan struct{})}
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
	_ = s.server.Close()
	_ = s.Close()
	s.done.Wait()
	s.app.CloseIdleConnections()
	for _, t := range *s.agent.tables.Load() {
		for _, p := range t.personal {
			p.drop()
		}
		if t.global != nil {
			t.global.drop()
		}
	}
}
