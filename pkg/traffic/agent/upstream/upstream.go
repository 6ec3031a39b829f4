// Package upstream connects a client to where its requests go: the app in the pod, or a laptop. It
// is what those who serve connections (packages raw, exchange and h2) have in common. Start with
// Dialer.
package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/relay/mux"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
)

const (
	// AppTimeout is how long the app may take to accept a connection.
	AppTimeout = 5 * time.Second
	// FirstBytesTimeout is how long a client may say nothing before the app gets the chance to
	// speak first.
	FirstBytesTimeout = 250 * time.Millisecond
)

// Upstream is a connection to the app or to a laptop.
type Upstream struct {
	net.Conn
	Target  *intercepts.Target // nil for the app
	Instead *intercepts.Target // the intercept whose laptop was unreachable, so that the app was dialed; nil if none
	Said    []byte             // what was read of it before
}

// Handover is a client's connection that somebody has to serve, or to serve on.
type Handover struct {
	First   []byte             // what was read from the client
	Up      *Upstream          // for the first request; nil if there is none yet
	Used    bool               // Up has served requests
	Head    *http1.Head        // of the request that First begins with, if it was parsed already
	Choice  *intercepts.Choice // what becomes of that request
	Refused bool               // the laptop is unreachable and the app must not answer: a client of HTTP can be told
	Opaque  bool               // First does not begin a request that can be understood
}

// TLSClient is a client's connection whose TLS ends in the agent. Upstreams of such a client get
// TLS of their own. Both methods own raw when they succeed, and close it when they fail.
type TLSClient interface {
	net.Conn
	// DialApp makes TLS with the app.
	DialApp(ctx context.Context, raw net.Conn) (net.Conn, error)
	// DialLaptop makes TLS with the process on the laptop of an intercept. When it fails, nothing
	// of the client's was sent.
	DialLaptop(ctx context.Context, t *intercepts.Target, raw net.Conn) (net.Conn, error)
}

// Dialer connects clients to upstreams.
type Dialer struct{ Log *slog.Logger }

// Open connects a client to the laptop of want, or to the app on a port if want is nil or its
// laptop is unreachable. The error is laptop.ErrUnreachable if the app must not take the laptop's
// place. The caller owns the result.
func (d Dialer) Open(ctx context.Context, want *intercepts.Target, client net.Conn, port uint16) (*Upstream, error) {
	up := &Upstream{}
	if want != nil {
		conn, err := d.Laptop(ctx, want, client)
		if err == nil {
			return &Upstream{Conn: conn, Target: want}, nil
		}
		if want.ErrorOnFailure {
			return nil, fmt.Errorf("%w: %w", laptop.ErrUnreachable, err)
		}
		d.Log.Debug("the laptop is unreachable, the app answers", "intercept", want.Uid, "err", err)
		up.Instead = want
	}
	conn, err := d.App(ctx, client, port)
	if s, ok := client.(TLSClient); ok && err == nil {
		conn, err = s.DialApp(ctx, conn)
	}
	if err != nil {
		return nil, err
	}
	up.Conn = conn
	return up, nil
}

// App connects to the app on the address that the client used: the app may not listen on any other.
// It makes no TLS.
func (d Dialer) App(ctx context.Context, client net.Conn, port uint16) (net.Conn, error) {
	local := client.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	dialer := net.Dialer{Timeout: AppTimeout}
	conn, err := dialer.DialContext(ctx, "tcp", netip.AddrPortFrom(local, port).String())
	if err != nil {
		return nil, fmt.Errorf("dial the app: %w", err)
	}
	return conn, nil
}

// Laptop connects to the process on a laptop, with TLS if the client's TLS ends in this agent and
// the process speaks it. When it fails, nothing of the client's was sent.
func (d Dialer) Laptop(ctx context.Context, t *intercepts.Target, client net.Conn) (net.Conn, error) {
	conn, err := t.Laptop.Dial(ctx, laptop.ClientOf(client))
	if err != nil {
		return nil, err
	}
	if s, ok := client.(TLSClient); ok && !t.LocalPlaintext {
		return s.DialLaptop(ctx, t, conn)
	}
	return conn, nil
}

// Alive reports whether a connection on which nothing is expected is open and has nothing to read.
func Alive(c net.Conn) bool {
	if r, ok := c.(*relay.Conn); ok && r.RecordReady() {
		return false
	}
	idle, ended, known := socketState(netx.Below(c))
	switch {
	case !known:
		return true
	case idle || ended:
		return idle
	}
	switch c.(type) {
	case *tls.Conn, *relay.Conn:
	default:
		return false
	}
	// TLS sends records of its own, such as session tickets. Only TLS can tell them from data.
	_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
	defer func() { _ = c.SetReadDeadline(time.Time{}) }()
	n, err := c.Read(make([]byte, 1))
	return n == 0 && errors.Is(err, os.ErrDeadlineExceeded)
}

// socketState reports whether a connection has nothing to read, and whether it has ended. known is
// false if nobody can tell.
func socketState(c net.Conn) (idle, ended, known bool) {
	switch s := c.(type) {
	case *mux.Stream:
		idle, ended = s.Idle()
		return idle, ended, true
	case syscall.Conn:
		raw, err := s.SyscallConn()
		if err != nil {
			return false, true, true
		}
		if err := raw.Control(func(fd uintptr) {
			n, err := netx.Peek(fd, make([]byte, 1))
			idle, ended = errors.Is(err, syscall.EAGAIN), err == nil && n == 0
		}); err != nil {
			return false, true, true
		}
		return idle, ended, true
	default:
		return false, false, false
	}
}
