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

// serveTLS serves a client that begins with TLS, if the port's certificate is available and is the app's own. Otherwise it returns
// false: nothing of the connection was touched, and h has what was read of it.
func (a *agent) serveTLS(ctx context.Context, client *net.TCPConn, port uint16, h *handover) bool {
	p := a.ports[port]
	if p == nil || p.opaque() != "" {
		return false
	}
	certificate, err := p.certificate.Get()
	if err != nil {
		return false
	}
	var hello *tlspeek.Hello
	_ = client.SetReadDeadline(time.Now().Add(helloTimeout))
	hello, h.first, err = tlspeek.ReadHello(client, h.first)
	_ = client.SetReadDeadline(time.Time{})
	if err != nil || hello.SupportsCertificate(certificate) != nil {
		return false
	}
	// The app first: its answer decides what the client is told.
	dialing, cancel := context.WithTimeout(ctx, appTimeout)
	defer cancel()
	raw, err := a.appConn(dialing, client, port, h)
	if err != nil {
		return false
	}
	s := &secured{agent: a, port: port, name: hello.Name()}
	if s.app, err = tlspeek.Connect(dialing, raw, s.name, hello.Protocols(), p.certificate.Matches); err != nil {
		a.log.Debug("a client's TLS passes unread", "port", port, "err", err)
		_ = raw.Close()
		return false
	}
	defer s.end()
	s.protocol = s.app.ConnectionState().NegotiatedProtocol
	if !slices.Contains([]string{"", "http/1.1", "h2"}, s.protocol) {
		return false
	}
	s.Conn = tls.Server(&netx.PrefixedConn{Conn: client, Prefix: h.first}, p.certificate.Config(s.protocol))
	shaking, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if err := s.HandshakeContext(shaking); err != nil {
		a.log.Debug("a client gave up its TLS handshake", "port", port, "err", err)
		return true
	}
	s.serve(ctx)
	_ = s.Conn.Close() // the end of TLS, where it was not cut
	return true
}

// appConn takes the connection to the app out of h, or makes one.
func (a *agent) appConn(ctx context.Context, client *net.TCPConn, port uint16, h *handover) (net.Conn, error) {
	if up := h.up; up != nil {
		h.up = nil
		if up.target == nil {
			return up.Conn, nil
		}
		_ = up.Close()
	}
	return a.dialApp(ctx, client, port)
}

func (s *secured) serve(ctx context.Context) {
	if s.protocol == "h2" {
		s.agent.serveHTTP2(s, s.port, nil, &upstream{Conn: s.take()})
		return
	}
	h := &handover{}
	var said []byte
	if s.protocol == "" {
		var err error
		if h.first, said, err = s.firstBytes(); err != nil {
			return
		}
		h.opaque = len(said) > 0 // who speaks first is no HTTP/1 server
	}
	h.up = &upstream{Conn: s.take(), said: said}
	if !h.opaque {
		h = s.agent.newExchange(s, s.port, h).serve(ctx)
	}
	if h != nil {
		(&rawConn{agent: s.agent, client: s, port: s.port, opaque: true}).serve(ctx, h.first, h.up)
	}
}

// firstBytes waits for whoever speaks first, the client or the app, where nobody has said which protocol is spoken. One of the
// results is empty.
func (s *secured) firstBytes() (client, app []byte, err error) {
	for b := make([]byte, 4<<10); ; {
		_ = s.SetReadDeadline(time.Now().Add(silence))
		n, err := s.Read(b)
		_ = s.SetReadDeadline(time.Time{})
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			if n > 0 {
				err = nil // the next read returns it again
			}
			return b[:n], nil, err
		}
		_ = s.app.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err = s.app.Read(b)
		_ = s.app.SetReadDeadline(time.Time{})
		if n > 0 {
			return nil, b[:n], nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil, err
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
	return tlspeek.Connect(ctx, raw, s.name, protocols, s.agent.ports[s.port].certificate.Matches)
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
