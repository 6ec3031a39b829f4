package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
	"github.com/detour-dev/detour/pkg/traffic/relay"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const bufferSize = 32 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// connection is one client's connection and the upstream it is joined to now.
type connection struct {
	agent  *agent
	client *net.TCPConn
	port   uint16

	mu       sync.Mutex
	up       *upstream
	proto    sniff.Protocol
	answered bool // the upstream has spoken since the client last did
	upgraded bool // no longer HTTP

	// writing is held while the client of an HTTP/2 connection is written to, by who carries the answers and by review.
	writing sync.Mutex
	frames  sniff.Frames // the upstream's
	leave   bool         // the client has to be asked to open another connection
	asked   bool
}

// upstream is one side a connection can be joined to.
type upstream struct {
	net.Conn
	route *route // nil for the app
	ended chan struct{}
	// left says that the connection has moved on: what becomes of this upstream no longer concerns the client.
	left bool
	// idle says that the laptop closed it between two requests: the next request opens another.
	idle bool
}

// serve carries a connection of which first was already read.
func (c *connection) serve(ctx context.Context, first []byte) {
	defer c.client.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.client.Close() })
	defer stop()
	up, err := c.open(ctx, c.agent.wanted(c.port))
	if err != nil {
		// The app does not accept: neither do we. A refusal becomes a reset, because the handshake is done.
		_ = c.client.SetLinger(0)
		return
	}
	c.join(up)
	defer c.agent.http2.Delete(c)
	err = c.fromClient(ctx, first)
	c.mu.Lock()
	up = c.up
	c.mu.Unlock()
	if err != nil {
		abort(up.Conn)
	} else {
		closeWrite(up.Conn)
	}
	<-up.ended
	_ = up.Close()
}

func (c *connection) join(up *upstream) {
	c.mu.Lock()
	c.up = up
	c.mu.Unlock()
	go c.fromUpstream(up) // ends when up is closed, and serve waits for it
}

// fromClient carries the client's bytes on, after those that were read before.
func (c *connection) fromClient(ctx context.Context, first []byte) error {
	said := func(b []byte) error { return c.clientSaid(ctx, b) }
	if len(first) > 0 {
		if err := said(first); err != nil {
			return err
		}
	}
	for {
		err := readReady(c.client, said)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// clientSaid passes b on, and changes the upstream before where b begins a request that belongs elsewhere.
func (c *connection) clientSaid(ctx context.Context, b []byte) error {
	c.mu.Lock()
	if c.proto == sniff.Unknown {
		if c.proto = sniff.Classify(b); c.proto == sniff.HTTP2 {
			c.agent.http2.Store(c, nil)
		}
	}
	up := c.up
	if c.proto == sniff.HTTP1 && !c.upgraded && (up.idle || c.answered) {
		if want := c.agent.wanted(c.port); (up.idle || want != up.route) && sniff.StartsRequest(b) {
			up.left = true
			c.mu.Unlock()
			next, err := c.open(ctx, want)
			if err != nil {
				return err
			}
			_ = up.Close()
			<-up.ended
			c.join(next)
			up = next
			c.mu.Lock()
		}
	}
	c.answered = false
	c.mu.Unlock()
	_, err := up.Write(b)
	return err
}

// fromUpstream carries the upstream's bytes to the client.
func (c *connection) fromUpstream(up *upstream) {
	defer close(up.ended)
	err := c.copyBack(up)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case up.left:
	case up.route != nil && c.proto == sniff.HTTP1 && !c.upgraded && c.answered && err == nil && c.agent.wanted(c.port) != up.route:
		up.idle = true // the intercept is over and the laptop closed up; the client need not know
	case err == nil:
		_ = c.client.CloseWrite()
	default:
		abort(c.client) // a clean end would make a cut answer look whole
	}
}

func (c *connection) copyBack(up *upstream) error {
	write := func(b []byte) error {
		c.mu.Lock()
		if c.proto == sniff.HTTP2 {
			c.answered = true
			c.mu.Unlock()
			return c.writeFrames(b)
		}
		if !c.answered {
			c.answered = true
			if c.proto == sniff.HTTP1 && sniff.SwitchesProtocol(b) {
				c.upgraded = true
			}
		}
		c.mu.Unlock()
		_, err := c.client.Write(b)
		return err
	}
	if tcp, ok := up.Conn.(*net.TCPConn); ok {
		for {
			if err := readReady(tcp, write); errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
		}
	}
	pooled := buffers.Get().(*[]byte)
	defer buffers.Put(pooled)
	for {
		n, err := up.Read(*pooled)
		if n > 0 {
			if werr := write((*pooled)[:n]); werr != nil {
				return werr
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// writeFrames gives the client what the upstream says in HTTP/2, and asks it to leave where that is due.
func (c *connection) writeFrames(b []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	end := c.frames.Feed(b)
	if c.leave && !c.asked && end >= 0 {
		c.asked = true
		b = slices.Concat(b[:end], sniff.Goaway, b[end:])
	}
	_, err := c.client.Write(b)
	return err
}

// review asks the client of an HTTP/2 connection to open another one when this one's upstream is not the wanted one any more.
func (c *connection) review() {
	if c.agent.wanted(c.port) == c.route() {
		return
	}
	c.writing.Lock()
	defer c.writing.Unlock()
	c.leave = true
	if c.asked || !c.frames.Between() {
		return
	}
	c.asked = true
	_, _ = c.client.Write(sniff.Goaway)
}

func (c *connection) route() *route {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.up == nil {
		return nil
	}
	return c.up.route
}

// readReady waits until c can be read and only then takes a buffer, so that an idle connection holds none.
func readReady(c *net.TCPConn, use func([]byte) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var n int
	var pooled *[]byte
	var readErr error
	err = raw.Read(func(fd uintptr) bool {
		if pooled == nil {
			pooled = buffers.Get().(*[]byte)
		}
		for {
			n, readErr = syscall.Read(int(fd), *pooled)
			if !errors.Is(readErr, syscall.EINTR) {
				break
			}
		}
		if errors.Is(readErr, syscall.EAGAIN) {
			buffers.Put(pooled)
			pooled = nil
			return false
		}
		return true
	})
	if pooled != nil {
		defer buffers.Put(pooled)
	}
	switch {
	case err != nil:
		return err
	case readErr != nil:
		return readErr
	case n == 0:
		return io.EOF
	}
	return use((*pooled)[:n])
}

// open joins the laptop of a route, or the app when there is no route or the laptop cannot be had.
func (c *connection) open(ctx context.Context, r *route) (*upstream, error) {
	if r != nil {
		conn, err := c.agent.dialLaptop(ctx, r, c.client)
		if err == nil {
			return &upstream{Conn: conn, route: r, ended: make(chan struct{})}, nil
		}
		c.agent.log.Debug("the laptop cannot be had, the app answers", "intercept", r.Uid, "err", err)
	}
	// The app is asked on the address that the client used: it may not listen on any other.
	local := c.client.LocalAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
	d := net.Dialer{Timeout: appTimeout}
	conn, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(local, c.port).String())
	if err != nil {
		return nil, fmt.Errorf("dial the app: %w", err)
	}
	return &upstream{Conn: conn, ended: make(chan struct{})}, nil
}

// dialLaptop opens a relayed connection. Nothing of the client's has been sent when it fails.
func (a *agent) dialLaptop(ctx context.Context, r *route, client net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, relayTimeout)
	defer cancel()
	d := tls.Dialer{Config: a.tls}
	conn, err := d.DialContext(ctx, "tcp", r.RelayAddress)
	if err != nil {
		a.skip(r)
		return nil, fmt.Errorf("dial the relay: %w", err)
	}
	deadline, _ := ctx.Deadline()
	_ = conn.SetDeadline(deadline)
	status, err := openRelay(conn, &agentv1.RelayHeader{InterceptUid: r.Uid, Token: r.Token, Source: client.RemoteAddr().String(), Destination: client.LocalAddr().String()})
	if err != nil || status != agentv1.RelayStatus_RELAY_STATUS_OK {
		_ = conn.Close()
		if err != nil || status == agentv1.RelayStatus_RELAY_STATUS_UNREACHABLE {
			a.skip(r)
		}
		return nil, errors.Join(fmt.Errorf("the relay answered %s", status), err)
	}
	_ = conn.SetDeadline(time.Time{})
	return conn, nil
}

func openRelay(conn net.Conn, h *agentv1.RelayHeader) (agentv1.RelayStatus, error) {
	if err := relay.WriteHeader(conn, h); err != nil {
		return 0, err
	}
	return relay.ReadStatus(conn)
}

func (a *agent) skip(r *route) { r.skipUntil.Store(time.Now().Add(skipAfterFailure).UnixNano()) }

func closeWrite(c net.Conn) {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

// abort closes with a reset where the transport has one.
func abort(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
