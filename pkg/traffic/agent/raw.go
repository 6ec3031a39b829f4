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

// upstream is a connection to the app or to a laptop.
type upstream struct {
	net.Conn
	target  *target // nil for the app
	instead *target // the intercept whose laptop was unreachable, so that the app was dialed; nil if none
	said    []byte  // what was read of it before
	ended   chan struct{}
	// left reports that the client has another upstream now: the end of this one no longer concerns it. rawConn.mu guards it.
	left bool
}

// rawConn joins a client to one upstream and passes on the bytes of both, whatever their protocol is.
//
// It does not serve HTTP: where the client speaks first, and speaks HTTP, rawConn hands the connection over to who serves it
// request by request, together with the upstream. Only an HTTP/2 connection whose server has spoken first stays here.
type rawConn struct {
	agent  *agent
	client net.Conn
	port   uint16
	opaque bool // never handed over: somebody has looked at the first bytes already

	// mu guards the fields below.
	mu       sync.Mutex
	up       *upstream
	protocol sniff.Protocol // HTTP2 or Other, once the client has spoken
	answered bool           // the upstream was the last to speak
	opening  opening
	preface  serverPreface

	frames   frameWriter   // to the client of an HTTP/2 connection
	activity atomic.Uint64 // how often either side has spoken
}

// errHandOver ends the reading of a client that is handed over.
var errHandOver = errors.New("handed over")

// serve carries a connection, of which first was already read, to its end. given is an upstream that may be used, or nil: serve
// takes ownership of it. If the result is not nil, somebody else has to serve the connection.
func (c *rawConn) serve(ctx context.Context, first []byte, given *upstream) *handover {
	seen := c.agent.see(c.port, "", "")
	want := c.agent.wanted(c.port)
	up, err := c.open(ctx, want, given)
	if err != nil {
		seen.owned(want)
		if errors.Is(err, laptop.ErrUnreachable) && !c.opaque {
			return &handover{first: first, refused: true}
		}
		seen.end()
		netx.Abort(c.client) // the app does not accept: a refusal becomes a reset, because the handshake with the client is done
		return nil
	}
	seen.went(want, up.target)
	c.mu.Lock()
	c.joinLocked(ctx, up)
	c.mu.Unlock()
	defer c.agent.framed.Delete(c)
	quietCtx, done := context.WithCancel(ctx)
	defer done()
	stop := context.AfterFunc(c.agent.stopping, func() { c.endWhenQuiet(quietCtx) })
	defer stop()
	rest, err := c.fromClient(first)
	if errors.Is(err, errHandOver) {
		return &handover{first: rest, up: c.release(up)}
	}
	c.end(err)
	seen.end()
	return nil
}

// end passes the end of the client on and waits for that of the upstream.
func (c *rawConn) end(err error) {
	up := c.upstream()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded): // endWhenQuiet has set it
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
	if next := c.upstream(); next != up { // the app has replaced a silent laptop meanwhile
		netx.CloseWrite(next.Conn)
		<-next.ended
		_ = next.Close()
	}
}

func (c *rawConn) upstream() *upstream {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

func (c *rawConn) joinLocked(ctx context.Context, up *upstream) {
	up.ended = make(chan struct{})
	c.up = up
	go c.fromUpstream(ctx, up) // ends when up is closed; serve waits for up.ended
}

// release stops the reading of the upstream, so that somebody else can read it.
func (c *rawConn) release(up *upstream) *upstream {
	_ = up.SetReadDeadline(time.Unix(1, 0))
	<-up.ended
	_ = up.SetReadDeadline(time.Time{})
	c.mu.Lock()
	defer c.mu.Unlock()
	return &upstream{Conn: up.Conn, target: up.target, instead: up.instead, said: c.preface.takeLocked()}
}

// fromClient passes on what the client says. When the error is errHandOver, the upstream did not get rest.
func (c *rawConn) fromClient(first []byte) (rest []byte, err error) {
	pass := func(b []byte) error {
		err := c.onClientData(b)
		if errors.Is(err, errHandOver) {
			rest = slices.Clone(b)
		}
		return err
	}
	if len(first) > 0 {
		if err := pass(first); err != nil {
			return rest, err
		}
	}
	err = readLoop(c.client, pass)
	return rest, err
}

// onClientData passes b on.
func (c *rawConn) onClientData(b []byte) error {
	c.activity.Add(1)
	c.mu.Lock()
	first := c.protocol == sniff.Unknown
	if first {
		if c.handsOverLocked(b) {
			c.preface.handedOver, c.up.left = true, true
			c.mu.Unlock()
			return errHandOver
		}
		c.protocol = sniff.Other
		if !c.opaque && sniff.Classify(b) == sniff.HTTP2 {
			c.protocol = sniff.HTTP2
			c.agent.framed.Store(c, nil)
			defer c.review() // something may have changed since the upstream was chosen
		}
		if err := c.sendPrefaceLocked(); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	up := c.up
	if first && !c.answered {
		c.opening.beginLocked(up)
	}
	c.opening.keepLocked(up, b)
	c.answered = false
	c.mu.Unlock()
	_, err := up.Write(b)
	if err != nil && c.replayed(up) {
		return nil // with b
	}
	return err
}

// handsOverLocked reports whether b, the first bytes of the client, are better served by somebody else: requests can be routed one
// by one.
func (c *rawConn) handsOverLocked(b []byte) bool {
	if c.opaque || c.answered {
		return false
	}
	switch sniff.Classify(b) {
	case sniff.HTTP2:
		return true
	case sniff.HTTP1:
		return len(c.preface.held) == 0 // who speaks first is no HTTP/1 server
	default:
		return len(c.preface.held) == 0 && tlspeek.StartsTLS(b) && c.agent.personal(c.port)
	}
}

// replayed waits until the app has got what a silent laptop did not take, and reports whether it has.
func (c *rawConn) replayed(up *upstream) bool {
	c.mu.Lock()
	replaced, lost := c.up != up, c.opening.lostLocked(up)
	c.mu.Unlock()
	if !replaced && lost {
		<-up.ended
		return c.upstream() != up
	}
	return replaced
}

// replayLocked gives the app what a silent laptop did not take, and reports whether the app has it.
func (c *rawConn) replayLocked(ctx context.Context, up *upstream) bool {
	if c.opening.tooLong || up.target.ErrorOnFailure {
		return false
	}
	next, err := c.open(ctx, nil, nil)
	if err != nil {
		return false
	}
	_ = next.SetWriteDeadline(time.Now().Add(appTimeout))
	_, err = next.Write(c.opening.raw)
	_ = next.SetWriteDeadline(time.Time{})
	if err != nil {
		_ = next.Close()
		return false
	}
	c.opening = opening{}
	up.left = true
	c.joinLocked(ctx, next)
	return true
}

// fromUpstream passes the upstream's bytes on to the client, and then its end.
func (c *rawConn) fromUpstream(ctx context.Context, up *upstream) {
	defer close(up.ended)
	err := c.copyBack(up)
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := c.opening.lostLocked(up)
	if !c.preface.handedOver {
		_ = c.sendPrefaceLocked()
	}
	switch {
	case up.left:
	case lost && c.replayLocked(ctx, up):
	case err == nil:
		netx.CloseWrite(c.client)
	default:
		netx.Abort(c.client) // a clean end would make a cut answer look whole
	}
}

func (c *rawConn) copyBack(up *upstream) error {
	if len(up.said) > 0 {
		if err := c.onUpstreamData(up.said); err != nil {
			return err
		}
	}
	return readLoop(up.Conn, c.onUpstreamData)
}

// onUpstreamData passes b on to the client.
func (c *rawConn) onUpstreamData(b []byte) error {
	c.activity.Add(1)
	c.mu.Lock()
	if c.holdPrefaceLocked(b) {
		c.mu.Unlock()
		return nil
	}
	if !c.opening.answeredLocked() {
		c.mu.Unlock()
		return laptop.ErrUnreachable
	}
	c.answered = true
	framed := c.protocol != sniff.Other // an HTTP/2 server may speak first
	c.mu.Unlock()
	if framed {
		return c.frames.write(c.client, b)
	}
	_, err := c.client.Write(b)
	return err
}

// review asks the client of an HTTP/2 connection to open another one if its requests do not belong to this upstream any more, or
// the pod ends.
func (c *rawConn) review() {
	if c.agent.podEnding.Load() || c.agent.personal(c.port) || c.agent.wanted(c.port) != c.upstream().target {
		c.frames.ask(c.client)
	}
}

// open returns given if it leads where the client wants, and otherwise connects there. The app takes the place of an unreachable
// laptop.
func (c *rawConn) open(ctx context.Context, want *target, given *upstream) (*upstream, error) {
	if given != nil {
		if len(given.said) > 0 || given.target == want && alive(given.Conn) {
			return given, nil
		}
		_ = given.Close()
	}
	conn, got, err := c.agent.open(ctx, want, c.client, c.port)
	if err != nil {
		return nil, err
	}
	up := &upstream{Conn: conn, target: got}
	if got == nil {
		up.instead = want
	}
	return up, nil
}

// readLoop gives use what can be read of c, until c ends or use fails.
func readLoop(c net.Conn, use func([]byte) error) error {
	read := func() error { return readReady(c.(*net.TCPConn), use) }
	if _, ok := c.(*net.TCPConn); !ok {
		pooled := buffers.Get().(*[]byte)
		defer buffers.Put(pooled)
		read = func() error {
			n, err := c.Read(*pooled)
			if n > 0 {
				if uerr := use((*pooled)[:n]); uerr != nil {
					return uerr
				}
			}
			return err
		}
	}
	for {
		if err := read(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
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
