package agent

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
)

// speaksHTTP2 says whether a laptop's process has chosen HTTP/2, where there was a choice.
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

// translate answers on a connection of HTTP/2 with what a process answers on conn, and on others that dial opens.
func (a *agent) translate(conn net.Conn, dial func(context.Context) (net.Conn, error)) net.Conn {
	first := make(chan net.Conn, 1)
	first <- conn
	from, to := new(http.Protocols), new(http.Protocols)
	from.SetUnencryptedHTTP2(true)
	to.SetHTTP1(true)
	open := func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case c := <-first:
			return &heard{Conn: c}, nil
		default:
			c, err := dial(ctx)
			if err != nil {
				return nil, errors.Join(laptop.ErrUnreachable, err)
			}
			return &heard{Conn: c}, nil
		}
	}
	here, there := net.Pipe()
	t := &translation{Conn: here, pool: &http.Transport{Protocols: to, DisableCompression: true, DialContext: open}}
	t.server = &http.Server{Protocols: from, Handler: &httputil.ReverseProxy{Rewrite: rewrite, FlushInterval: -1, Transport: t, ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
		if errors.Is(err, laptop.ErrUnreachable) {
			panic(http.ErrAbortHandler) // see Refusal
		}
		w.WriteHeader(http.StatusBadGateway)
	}}}
	l := &listener{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	l.conns <- there
	a.conns.Go(func() {
		_ = t.server.Serve(l)
		t.pool.CloseIdleConnections()
		select {
		case c := <-first:
			_ = c.Close() // nobody needed it
		default:
		}
	})
	return t
}

// heard is a connection whose end is told to who reads it, and not to who writes: Go's client would look no further for the answer of a process that
// answers and closes while it is written to.
type heard struct {
	net.Conn
	lost atomic.Bool
}

func (c *heard) Write(b []byte) (int, error) {
	if !c.lost.Load() {
		if _, err := c.Conn.Write(b); err != nil {
			c.lost.Store(true)
		}
	}
	return len(b), nil
}

// NetConn is the connection below.
func (c *heard) NetConn() net.Conn { return c.Conn }

// RoundTrip asks the process, and says of what may be asked of the app that the laptop cannot be had.
func (t *translation) RoundTrip(r *http.Request) (*http.Response, error) {
	var asked atomic.Pointer[mux.Delivery]
	ctx, cancel := context.WithCancel(r.Context())
	answer, err := t.pool.RoundTrip(r.WithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(got httptrace.GotConnInfo) {
		if s := laptop.StreamOf(got.Conn); s != nil {
			if before := asked.Swap(s.Track(cancel)); before != nil {
				before.Done()
			}
		}
	}})))
	switch q := asked.Load(); {
	case q != nil && !q.Done():
		if err == nil {
			_ = answer.Body.Close()
		}
		err = fmt.Errorf("%w: it has fallen silent", laptop.ErrUnreachable)
	case repeatable(r.Method, err):
		err = errors.Join(laptop.ErrUnreachable, err)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return answer, nil
}

// Refusal is the code by which the switch sees that a request was not sent: Go's server has no other for those that it gives up.
func (*translation) Refusal() http2.ErrCode { return http2.ErrCodeInternal }

// Close ends the translation, with what is under way.
func (t *translation) Close() error {
	err := t.Conn.Close()
	t.once.Do(func() { _ = t.server.Close() })
	return err
}

// rewrite leaves a request as it is.
func rewrite(r *httputil.ProxyRequest) {
	r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "laptop", r.In.Host
	for _, name := range []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "User-Agent"} {
		r.Out.Header[name] = r.In.Header[name] // none is none
	}
}

// listener has one connection.
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
