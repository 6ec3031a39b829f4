package agent

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/tlspeek"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/passthrough"
)

const (
	// helloTimeout is how long a client may take for its ClientHello, and for the rest of the handshake.
	helloTimeout = 5 * time.Second
	// plainPause is how long a process is not tried again that did not speak TLS: it may take its time to show that.
	plainPause = time.Second
)

// secured is a client's connection whose TLS ends here. Each upstream gets TLS of its own: the app with the same name and protocol as
// the client asked for, if it shows the very certificate of the port's Secret, the laptop whatever it shows. An app's connections
// and those to laptops are this client's alone, because name and protocol are.
type secured struct {
	*tls.Conn // to the client
	agent     *agent
	port      uint16
	name      string // that the client wants
	protocol  string // that the app has chosen: "h2", "http/1.1" or nothing

	mu  sync.Mutex
	app *tls.Conn // the first to the app, until somebody uses it
}

// serveTLS serves a client that began with TLS, when its port's certificate can be had and is the app's own. Else nothing of the
// connection is touched, and what was read of it is in h.
func (a *agent) serveTLS(ctx context.Context, h *passthrough.Handover) bool {
	p := a.ports[h.Port]
	if p == nil || p.opaque() != "" {
		return false
	}
	certificate, err := p.certificate.Get()
	if err != nil {
		return false
	}
	var hello *tlspeek.Hello
	_ = h.Client.SetReadDeadline(time.Now().Add(helloTimeout))
	hello, h.First, err = tlspeek.ReadHello(h.Client, h.First)
	_ = h.Client.SetReadDeadline(time.Time{})
	if err != nil || hello.SupportsCertificate(certificate) != nil {
		return false
	}
	// The app first: what it says decides what the client is told.
	dialing, cancel := context.WithTimeout(ctx, appTimeout)
	defer cancel()
	var raw net.Conn
	if h.App != nil {
		raw, h.App = h.App, nil
	} else if raw, err = a.dialApp(dialing, h.Client, h.Port); err != nil {
		return false
	}
	s := &secured{agent: a, port: h.Port, name: hello.Name()}
	if s.app, err = tlspeek.Connect(dialing, raw, s.name, hello.Protocols(), p.certificate.Is); err != nil {
		a.log.Debug("TLS passes untouched", "port", h.Port, "err", err)
		_ = raw.Close()
		return false
	}
	defer s.end()
	s.protocol = s.app.ConnectionState().NegotiatedProtocol
	if !slices.Contains([]string{"", "http/1.1", "h2"}, s.protocol) {
		return false
	}
	s.Conn = tls.Server(&netx.PrefixedConn{Conn: h.Client, Prefix: h.First}, p.certificate.Config(s.protocol))
	shaking, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if err := s.HandshakeContext(shaking); err != nil {
		a.log.Debug("a client gave up its TLS handshake", "port", h.Port, "err", err)
		return true
	}
	s.serve(ctx)
	return true
}

func (s *secured) serve(ctx context.Context) {
	if s.protocol == "h2" {
		s.agent.serveHTTP2(s, s.port, nil, &upstream{Conn: s.take()})
		return
	}
	e := s.agent.newExchange(s, passthrough.Handover{Port: s.port})
	defer e.end()
	if s.protocol == "" {
		spoken, err := s.firstWord(e.client)
		if err != nil {
			_ = e.client.Close()
			return
		}
		if len(spoken) > 0 {
			e.upstreams[nil] = newLink(s.take(), spoken)
			e.raw(ctx, nil)
			_ = e.client.Close()
			return
		}
	}
	if app := s.take(); app != nil {
		e.upstreams[nil] = newLink(app, nil)
	}
	e.serve(ctx)
	_ = e.client.Close() // the end of TLS, where it was not cut
}

// firstWord waits for whoever speaks first where nobody has said what is spoken, and returns what the app says if it is the app.
func (s *secured) firstWord(client *link) (spoken []byte, err error) {
	for b := make([]byte, 4<<10); ; {
		_ = client.SetReadDeadline(time.Now().Add(silence))
		_, err := client.r.Peek(1)
		_ = client.SetReadDeadline(time.Time{})
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, err
		}
		_ = s.app.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err := s.app.Read(b)
		_ = s.app.SetReadDeadline(time.Time{})
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return b[:n], err
		}
	}
}

// take is the first connection to the app, once.
func (s *secured) take() *tls.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	app := s.app
	s.app = nil
	return app
}

// dialApp makes another connection to the app.
func (s *secured) dialApp(ctx context.Context, raw net.Conn) (*tls.Conn, error) {
	var protocols []string
	if s.protocol != "" {
		protocols = []string{s.protocol}
	}
	ctx, cancel := context.WithTimeout(ctx, appTimeout)
	defer cancel()
	return tlspeek.Connect(ctx, raw, s.name, protocols, s.agent.ports[s.port].certificate.Is)
}

// dialLaptop speaks TLS with the process on the laptop. The way there is authenticated and encrypted already, so whatever certificate
// a developer's process has will do.
func (s *secured) dialLaptop(ctx context.Context, t *target, raw net.Conn) (*tls.Conn, error) {
	protocols := []string{"http/1.1"}
	switch s.protocol {
	case "h2":
		protocols = []string{"h2", "http/1.1"}
	case "":
		protocols = nil
	}
	if time.Now().UnixNano() < t.plainUntil.Load() {
		return nil, tlspeek.ErrNotTLS
	}
	ctx, cancel := context.WithTimeout(ctx, laptop.DialTimeout)
	defer cancel()
	conn, err := tlspeek.Connect(ctx, raw, s.name, protocols, func(*x509.Certificate) bool { return true })
	if err != nil {
		t.plainUntil.Store(time.Now().Add(plainPause).UnixNano())
	}
	return conn, err
}

// orClose closes raw when the TLS on it failed.
func orClose(raw net.Conn) func(*tls.Conn, error) (net.Conn, error) {
	return func(c *tls.Conn, err error) (net.Conn, error) {
		if err != nil {
			_ = raw.Close()
			return nil, err
		}
		return c, nil
	}
}

// end closes what nobody has used.
func (s *secured) end() {
	if app := s.take(); app != nil {
		_ = app.Close()
	}
}

// securedOf is the TLS of a client, or nil when it speaks in the clear.
func securedOf(client net.Conn) *secured {
	s, _ := client.(*secured)
	return s
}
