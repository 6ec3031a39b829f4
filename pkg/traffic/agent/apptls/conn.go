// Package apptls ends the TLS of clients in the agent, so that their requests can be told apart. It
// does so only where the port has a certificate that the app itself uses: otherwise the TLS passes
// unread.
//
// Start with Ports, which knows the certificates, and Accept, which makes a Conn of a client's
// connection.
package apptls

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
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
)

const (
	// helloTimeout is how long a client may take for its ClientHello, and for the rest of the
	// handshake.
	helloTimeout = 5 * time.Second
	// plaintextPause is how long TLS is not tried again with a process that did not speak it: it
	// may be slow to show that.
	plaintextPause = time.Second
)

// Conn is a client's connection whose TLS ends here. It implements upstream.TLSClient: each
// upstream gets TLS of its own. The app gets it with the name and protocol that the client asked
// for, if it shows the very certificate of the port's Secret. The laptop may show any certificate.
// No other client shares these connections, because name and protocol are this client's.
type Conn struct {
	*tls.Conn // to the client
	port      *port
	name      string // that the client wants
	protocol  string // that the app has chosen: "h2", "http/1.1" or nothing

	// mu guards the fields below.
	mu  sync.Mutex
	app *tls.Conn // the first to the app, until somebody takes it
}

var _ upstream.TLSClient = (*Conn)(nil)

// ErrUnread is the error of TLS that cannot be ended here. Nothing was sent to the client, so that
// its bytes can be passed on.
var ErrUnread = errors.New("the TLS passes unread")

// Accept ends the TLS of a client's connection, of which h has what was read, with the app's own
// certificate. If the error is ErrUnread, somebody else has to serve h. With any other error the
// client gave up its handshake, and nothing is left to do.
//
// The caller still owns client, and closes the Conn before it. The Conn has a connection to the
// app: that of h, or one from dial.
func (p *Ports) Accept(
	ctx context.Context, client *net.TCPConn, number uint16, h *upstream.Handover,
	dial func(context.Context) (net.Conn, error),
) (*Conn, error) {
	port := p.usable(number)
	if port == nil {
		return nil, ErrUnread
	}
	certificate, err := port.certificate.Get()
	if err != nil {
		return nil, ErrUnread
	}
	var hello *tlspeek.Hello
	_ = client.SetReadDeadline(time.Now().Add(helloTimeout))
	hello, h.First, err = tlspeek.ReadHello(client, h.First)
	_ = client.SetReadDeadline(time.Time{})
	if err != nil || hello.SupportsCertificate(certificate) != nil {
		return nil, ErrUnread
	}
	c := &Conn{port: port, name: hello.Name()}
	if err := c.connectApp(ctx, hello, h, dial); err != nil {
		p.log.Debug("the TLS of a client passes unread", "port", number, "err", err)
		return nil, ErrUnread
	}
	c.Conn = tls.Server(&netx.PrefixedConn{Conn: client, Prefix: h.First}, port.certificate.Config(c.protocol))
	ctx, cancel := context.WithTimeout(ctx, helloTimeout)
	defer cancel()
	if err := c.HandshakeContext(ctx); err != nil {
		c.CloseUnused()
		return nil, err
	}
	return c, nil
}

// connectApp makes TLS with the app before the client's handshake, because the app's answer decides
// what the client is told.
func (c *Conn) connectApp(
	ctx context.Context, hello *tlspeek.Hello, h *upstream.Handover, dial func(context.Context) (net.Conn, error),
) error {
	ctx, cancel := context.WithTimeout(ctx, upstream.AppTimeout)
	defer cancel()
	var raw net.Conn
	if up := h.Up; up != nil {
		h.Up = nil
		if up.Target == nil {
			raw = up.Conn
		} else {
			_ = up.Close()
		}
	}
	if raw == nil {
		var err error
		if raw, err = dial(ctx); err != nil {
			return err
		}
	}
	app, err := tlspeek.Connect(ctx, raw, c.name, hello.Protocols(), c.port.certificate.Matches)
	if err != nil {
		_ = raw.Close()
		return err
	}
	c.app, c.protocol = app, app.ConnectionState().NegotiatedProtocol
	if !slices.Contains([]string{"", "http/1.1", "h2"}, c.protocol) {
		c.CloseUnused()
		return errors.New("the app has chosen the protocol " + c.protocol)
	}
	return nil
}

// HTTP2 reports whether the client and the app have agreed on HTTP/2.
func (c *Conn) HTTP2() bool { return c.protocol == "h2" }

// Handover returns the connection for somebody to serve. If client and app have agreed on no
// protocol, Handover waits for whoever speaks first. The Handover owns the connection to the app.
func (c *Conn) Handover() (*upstream.Handover, error) {
	h := &upstream.Handover{}
	var said []byte
	if c.protocol == "" {
		var err error
		if h.First, said, err = c.firstBytes(); err != nil {
			return nil, err
		}
		h.Opaque = len(said) > 0 // who speaks first is no HTTP/1 server
	}
	h.Up = &upstream.Upstream{Conn: c.take(), Said: said}
	return h, nil
}

// firstBytes waits for whoever speaks first, the client or the app. One of the results is empty.
func (c *Conn) firstBytes() (client, app []byte, err error) {
	for b := make([]byte, 4<<10); ; {
		_ = c.SetReadDeadline(time.Now().Add(upstream.FirstBytesTimeout))
		n, err := c.Read(b)
		_ = c.SetReadDeadline(time.Time{})
		if n > 0 {
			return b[:n], nil, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil, err
		}
		_ = c.app.SetReadDeadline(time.Now().Add(time.Millisecond))
		n, err = c.app.Read(b)
		_ = c.app.SetReadDeadline(time.Time{})
		if n > 0 {
			return nil, b[:n], nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, nil, err
		}
	}
}

// take returns the first connection to the app, once.
func (c *Conn) take() *tls.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	app := c.app
	c.app = nil
	return app
}

// CloseUnused closes the first connection to the app if nobody has taken it.
func (c *Conn) CloseUnused() {
	if app := c.take(); app != nil {
		_ = app.Close()
	}
}

// DialApp implements upstream.TLSClient.
func (c *Conn) DialApp(ctx context.Context, raw net.Conn) (net.Conn, error) {
	var protocols []string
	if c.protocol != "" {
		protocols = []string{c.protocol}
	}
	ctx, cancel := context.WithTimeout(ctx, upstream.AppTimeout)
	defer cancel()
	return orClose(raw)(tlspeek.Connect(ctx, raw, c.name, protocols, c.port.certificate.Matches))
}

// DialLaptop implements upstream.TLSClient. The relay authenticates and encrypts the connection
// already, so any certificate that a developer's process has will do.
func (c *Conn) DialLaptop(ctx context.Context, t *intercepts.Target, raw net.Conn) (net.Conn, error) {
	protocols := []string{"http/1.1"}
	switch c.protocol {
	case "h2":
		protocols = []string{"h2", "http/1.1"}
	case "":
		protocols = nil
	}
	if time.Now().UnixNano() < t.PlaintextUntil.Load() {
		_ = raw.Close()
		return nil, tlspeek.ErrNotTLS
	}
	ctx, cancel := context.WithTimeout(ctx, laptop.DialTimeout)
	defer cancel()
	conn, err := tlspeek.Connect(ctx, raw, c.name, protocols, func(*x509.Certificate) bool { return true })
	if err != nil {
		t.PlaintextUntil.Store(time.Now().Add(plaintextPause).UnixNano())
	}
	return orClose(raw)(conn, err)
}

// orClose closes raw if the TLS on it failed.
func orClose(raw net.Conn) func(*tls.Conn, error) (net.Conn, error) {
	return func(c *tls.Conn, err error) (net.Conn, error) {
		if err != nil {
			_ = raw.Close()
			return nil, err
		}
		return c, nil
	}
}
