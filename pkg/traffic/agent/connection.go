package agent

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/tlspeek"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// bufferSize is two records of TLS, without the headers of two frames (pkg/relay/mux).
const bufferSize = 32<<10 - 16

var buffers = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// connection is one client's connection and the upstream it is joined to now.
type connection struct {
	agent  *agent
	client *net.TCPConn
	app    *net.TCPConn // a connection to the app that is there already, or nil
	port   uint16
	// untouched is a connection of TLS that is not looked into.
	untouched bool
	// refused says that the laptop cannot be had and nobody else shall answer: a client of HTTP can be told.
	refused bool

	mu       sync.Mutex
	up       *upstream
	proto    sniff.Protocol
	answered bool // the upstream has spoken since the client last did
	upgraded bool // no longer HTTP
	begun    begun

	greeting greeting
	frames   frameWriter   // to the client of an HTTP/2 connection
	spoken   atomic.Uint64 // how often either side has said something
}

// upstream is one side a connection can be joined to.
type upstream struct {
	net.Conn
	target *target // nil for the app
	ended  chan struct{}
	// left says that the connection has moved on: what becomes of this upstream no longer concerns the client.
	left bool
	// idle says that the laptop closed it between two requests: the next request opens another.
	idle bool
}

// errByRequest leaves a connection to be served request by request, from rest on. Its upstream goes along if that is kept.
type errByRequest struct {
	rest []byte
	keep bool
}

func (errByRequest) Error() string { return "to be served request by request" }

// serve carries a connection of which first was already read. It may end with the connection to be served on, from rest.
func (c *connection) serve(ctx context.Context, first []byte) (again bool, rest []byte) {
	seen := c.agent.see(c.port, "", "")
	defer func() {
		if !again {
			seen.end()
		}
	}()
	want := c.agent.wanted(c.port)
	up, err := c.open(ctx, want)
	if err != nil {
		seen.owned(want)
		if c.refused = errors.Is(err, laptop.ErrUnreachable) && !c.untouched; c.refused {
			return true, first
		}
		// The app does not accept: neither do we. A refusal becomes a reset, because the handshake is done.
		_ = c.client.SetLinger(0)
		return false, nil
	}
	seen.went(want, up.target)
	c.join(ctx, up)
	defer c.agent.framed.Delete(c)
	watching, done := context.WithCancel(ctx)
	defer done()
	forget := context.AfterFunc(c.agent.stopping, func() { c.endWhenQuiet(watching) })
	defer forget()
	err = c.fromClient(ctx, first)
	c.mu.Lock()
	up = c.up
	c.mu.Unlock()
	var leaves errByRequest
	switch {
	case errors.As(err, &leaves) && leaves.keep:
		c.give(up)
		return true, leaves.rest
	case errors.As(err, &leaves):
		_ = up.Close()
		<-up.ended
		return true, leaves.rest
	case errors.Is(err, os.ErrDeadlineExceeded): // endWhenQuiet's
		c.mu.Lock()
		up.left = true
		c.mu.Unlock()
		_ = up.Close()
	case err != nil:
		netx.Abort(up.Conn)
	default:
		netx.CloseWrite(up.Conn)
	}
	<-up.ended
	_ = up.Close()
	if next := c.now(); next != up { // its laptop has fallen silent meanwhile
		netx.CloseWrite(next.Conn)
		<-next.ended
		_ = next.Close()
	}
	return false, nil
}

func (c *connection) now() *upstream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

func (c *connection) join(ctx context.Context, up *upstream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.joined(ctx, up)
}

// joined is join with c.mu held.
func (c *connection) joined(ctx context.Context, up *upstream) {
	c.up = up
	go c.fromUpstream(ctx, up) // ends when up is closed, and serve waits for it
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
	c.spoken.Add(1)
	c.mu.Lock()
	begins := c.proto == sniff.Unknown
	switch {
	case begins:
		if c.proto = sniff.Classify(b); c.proto == sniff.HTTP2 {
			if c.up.target != nil && !c.answered {
				c.greeting.leaves, c.up.left = true, true
				c.mu.Unlock()
				return errByRequest{rest: slices.Clone(b), keep: true}
			}
			c.agent.framed.Store(c, nil)
			defer c.review() // something may have changed since the upstream was chosen
		} else if c.answered || len(c.greeting.said) > 0 {
			c.proto = sniff.Other // who speaks first is no HTTP/1 server
		}
		if err := c.release(); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	up := c.up
	routable := c.proto != sniff.Other || (tlspeek.StartsTLS(b) && !c.untouched)
	if c.agent.personal(c.port) && !c.upgraded && ((begins && !c.answered && routable) || (c.proto == sniff.HTTP1 && (up.idle || c.answered) && sniff.StartsRequest(b))) {
		up.left = true
		c.mu.Unlock()
		return errByRequest{rest: slices.Clone(b)}
	}
	if c.proto == sniff.HTTP1 && !c.upgraded && (up.idle || c.answered) {
		if want := c.agent.wanted(c.port); (up.idle || want != up.target) && sniff.StartsRequest(b) {
			up.left = true
			c.mu.Unlock()
			next, err := c.open(ctx, want)
			if err != nil {
				return err
			}
			_ = up.Close()
			<-up.ended
			c.join(ctx, next)
			up = next
			c.mu.Lock()
		}
	}
	asks := begins && !c.answered || c.proto == sniff.HTTP1 && !c.upgraded && c.answered && sniff.StartsRequest(b)
	c.begun.said(up, b, asks)
	c.answered = false
	c.mu.Unlock()
	_, err := up.Write(b)
	if err != nil && c.moved(up, err) {
		return nil // with b
	}
	return err
}

// moved waits whether the app gets what a silent laptop has not taken.
func (c *connection) moved(up *upstream, err error) bool {
	c.mu.Lock()
	moved, lost := c.up != up, c.begun.lost(up, err)
	c.mu.Unlock()
	if !moved && lost {
		<-up.ended
		return c.now() != up
	}
	return moved
}

// move gives the app what the laptop has not taken of the client; c.mu is held. It says whether the app has it.
func (c *connection) move(ctx context.Context, up *upstream) bool {
	if c.begun.over || up.target.ErrorOnFailure {
		return false
	}
	next, err := c.open(ctx, nil)
	if err != nil {
		return false
	}
	_ = next.SetWriteDeadline(time.Now().Add(appTimeout))
	_, err = next.Write(c.begun.raw)
	_ = next.SetWriteDeadline(time.Time{})
	if err != nil {
		_ = next.Close()
		return false
	}
	c.begun = begun{}
	up.left = true
	c.joined(ctx, next)
	return true
}

// fromUpstream carries the upstream's bytes to the client.
func (c *connection) fromUpstream(ctx context.Context, up *upstream) {
	defer close(up.ended)
	err := c.copyBack(up)
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := c.begun.lost(up, err)
	if !c.greeting.leaves {
		_ = c.release()
	}
	switch {
	case up.left:
	case lost && c.move(ctx, up):
	case up.target != nil && c.proto == sniff.HTTP1 && !c.upgraded && c.answered && err == nil && c.agent.wanted(c.port) != up.target:
		up.idle = true // the intercept is over and the laptop closed up; the client need not know
	case err == nil:
		_ = c.client.CloseWrite()
	default:
		netx.Abort(c.client) // a clean end would make a cut answer look whole
	}
}

func (c *connection) copyBack(up *upstream) error {
	write := func(b []byte) error {
		c.spoken.Add(1)
		c.mu.Lock()
		if c.greets(b) {
			c.mu.Unlock()
			return nil
		}
		if !c.begun.answered() {
			c.mu.Unlock()
			return laptop.ErrUnreachable
		}
		if c.proto == sniff.HTTP2 || c.proto == sniff.Unknown { // whose server may greet first
			c.answered = true
			c.mu.Unlock()
			return c.frames.write(c.client, b)
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

// review asks the client of an HTTP/2 connection to open another one when this one's upstream is not the wanted one any more, or the pod
// ends.
func (c *connection) review() {
	if c.agent.podEnding.Load() || c.agent.personal(c.port) || c.agent.wanted(c.port) != c.target() {
		c.frames.ask(c.client)
	}
}

func (c *connection) target() *target {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.up == nil {
		return nil
	}
	return c.up.target
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

// open joins the laptop of a target, or the app when there is none or the laptop cannot be had.
func (c *connection) open(ctx context.Context, want *target) (*upstream, error) {
	if app := c.app; app != nil {
		c.app = nil
		if want == nil && alive(app) {
			return &upstream{Conn: app, ended: make(chan struct{})}, nil
		}
		_ = app.Close()
	}
	conn, got, err := c.agent.open(ctx, want, c.client, c.port)
	if err != nil {
		return nil, err
	}
	return &upstream{Conn: conn, target: got, ended: make(chan struct{})}, nil
}
