package h2

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"sync"
	"sync/atomic"

	"golang.org/x/net/http2"

	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/replay"
)

// speaksHTTP2 reports whether a laptop's process has chosen HTTP/2, if it had a choice.
func speaksHTTP2(c net.Conn) bool {
	secure, ok := c.(*tls.Conn)
	return !ok || secure.ConnectionState().NegotiatedProtocol == "h2"
}

// translation is a connection that speaks HTTP/2 for a process that speaks HTTP/1 only.
type translation struct {
	net.Conn
	server *http.Server
	pool   *http.Transport
	once   sync.Once
}

// translate returns a connection that answers HTTP/2 with what the process answers on conn, and on
// other connections from dial. The result owns conn. run runs a task that ends when the result is
// closed.
func translate(conn net.Conn, dial func(context.Context) (net.Conn, error), run func(task func())) net.Conn {
	first := make(chan net.Conn, 1)
	first <- conn
	from, to := new(http.Protocols), new(http.Protocols)
	from.SetUnencryptedHTTP2(true)
	to.SetHTTP1(true)
	open := func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case c := <-first:
			return &readerSeesEnd{Conn: c}, nil
		default:
			c, err := dial(ctx)
			if err != nil {
				return nil, errors.Join(laptop.ErrUnreachable, err)
			}
			return &readerSeesEnd{Conn: c}, nil
		}
	}
	here, there := net.Pipe()
	t := &translation{Conn: here, pool: &http.Transport{Protocols: to, DisableCompression: true, DialContext: open}}
	t.server = &http.Server{Protocols: from, Handler: &httputil.ReverseProxy{
		Rewrite: keepRequest, FlushInterval: -1, Transport: t, ErrorHandler: onError,
	}}
	l := &listener{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conns <- there
	run(func() {
		_ = t.server.Serve(l)
		t.pool.CloseIdleConnections()
		select {
		case c := <-first:
			_ = c.Close() // no request has used it
		default:
		}
	})
	return t
}

func onError(w http.ResponseWriter, _ *http.Request, err error) {
	if errors.Is(err, laptop.ErrUnreachable) {
		panic(http.ErrAbortHandler) // see Refusal
	}
	w.WriteHeader(http.StatusBadGateway)
}

// readerSeesEnd is a connection whose end only the reader sees, and not the writer. Go's client
// would not read the answer of a process that answers and closes while the client still writes.
type readerSeesEnd struct {
	net.Conn
	lost atomic.Bool
}

// Write implements net.Conn. It never fails.
func (c *readerSeesEnd) Write(b []byte) (int, error) {
	if !c.lost.Load() {
		if _, err := c.Conn.Write(b); err != nil {
			c.lost.Store(true)
		}
	}
	return len(b), nil
}

// NetConn returns the connection below.
func (c *readerSeesEnd) NetConn() net.Conn { return c.Conn }

// RoundTrip sends a request to the process. The error is laptop.ErrUnreachable if the app may get
// the request instead.
func (t *translation) RoundTrip(r *http.Request) (*http.Response, error) {
	var delivery atomic.Pointer[mux.Delivery]
	ctx, cancel := context.WithCancel(r.Context())
	trace := &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if s := laptop.StreamOf(got.Conn); s != nil {
			if before := delivery.Swap(s.Track(cancel)); before != nil {
				before.Done()
			}
		}
	}}
	answer, err := t.pool.RoundTrip(r.WithContext(httptrace.WithClientTrace(ctx, trace)))
	switch d := delivery.Load(); {
	case d != nil && !d.Done():
		if err == nil {
			_ = answer.Body.Close()
		}
		err = fmt.Errorf("%w: it does not answer pings", laptop.ErrUnreachable)
	case replay.Repeatable(r.Method, err):
		err = errors.Join(laptop.ErrUnreachable, err)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return answer, nil
}

// Refusal returns the code by which the router sees that a request was not sent: Go's server has no
// other code for requests that it gives up.
func (*translation) Refusal() http2.ErrCode { return http2.ErrCodeInternal }

// Close ends the translation, with the requests that are in progress.
func (t *translation) Close() error {
	err := t.Conn.Close()
	t.once.Do(func() { _ = t.server.Close() })
	return err
}

// keepRequest undoes what ReverseProxy changes in a request.
func keepRequest(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "laptop", r.In.Host
	for _, name := range []string{
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "User-Agent",
	} {
		r.Out.Header[name] = r.In.Header[name] // nil means that the header is not sent
	}
}

// listener accepts one connection.
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr { return &net.TCPAddr{} }
