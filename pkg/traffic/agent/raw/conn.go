package raw

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/tlspeek"
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	"github.com/detour-dev/detour/pkg/traffic/agent/laptop"
	"github.com/detour-dev/detour/pkg/traffic/agent/report"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
)

// Host is what a Conn needs of its agent. Its methods are called by many goroutines.
type Host interface {
	// Global returns the intercept that takes everything on a port, or nil for the app. ByRequest
	// reports whether the requests on the port have to be looked at one by one.
	Global(port uint16) *intercepts.Target
	ByRequest(port uint16) bool
	// Open connects a client to the laptop of want, or to the app; see upstream.Dialer.
	Open(ctx context.Context, want *intercepts.Target, client net.Conn, port uint16) (*upstream.Upstream, error)
	// Follow begins to report a connection; it returns nil if nobody tails the port.
	Follow(port uint16, method, target string) *report.Request
	// PodEnding reports whether clients have to open another connection for their next request.
	PodEnding() bool
	// Register makes the agent call Review whenever what is in force has changed, until Unregister.
	Register(Reviewer)
	Unregister(Reviewer)
	// Stopping returns the context that ends when idle connections are to be closed.
	Stopping() context.Context
}

// Reviewer is an HTTP/2 connection that checks whether its client has to open another one. Review
// may block.
type Reviewer interface{ Review() }

// Conn joins a client to one upstream and passes on the bytes of both.
type Conn struct {
	host   Host
	client net.Conn
	port   uint16
	opaque bool // never handed over: somebody has looked at the first bytes already

	// mu guards the fields below.
	mu       sync.Mutex
	up       *joined
	protocol sniff.Protocol // HTTP2 or Other, once the client has spoken
	answered bool           // the upstream was the last to speak
	opening  opening
	preface  serverPreface

	frames   frameWriter   // to the client of an HTTP/2 connection
	activity atomic.Uint64 // how often either side has spoken
}

// joined is an upstream that a goroutine reads.
type joined struct {
	*upstream.Upstream
	ended chan struct{} // closed when the goroutine ends
	// left is set when the client has another upstream: the end of this one no longer concerns it.
	// Conn.mu guards it.
	left bool
}

// New returns a Conn for a client's connection to a port, which the caller closes. An opaque one is
// never handed over.
func New(host Host, client net.Conn, port uint16, opaque bool) *Conn {
	return &Conn{host: host, client: client, port: port, opaque: opaque}
}

// errHandOver ends the reading of a client that is handed over.
var errHandOver = errors.New("handed over")

// Serve carries the connection, of which first was already read, to its end. given is an upstream
// that may be used, or nil: Serve owns it. If the result is not nil, somebody else has to serve the
// connection.
func (c *Conn) Serve(ctx context.Context, first []byte, given *upstream.Upstream) *upstream.Handover {
	report := c.host.Follow(c.port, "", "")
	want := c.host.Global(c.port)
	up, err := c.open(ctx, want, given)
	if err != nil {
		report.SetOwner(want.UID())
		if errors.Is(err, laptop.ErrUnreachable) && !c.opaque {
			return &upstream.Handover{First: first, Refused: true}
		}
		report.End()
		// The app refuses. The handshake with the client is done, so the refusal becomes a reset.
		netx.Abort(c.client)
		return nil
	}
	report.SetOwner(want.UID())
	report.SetLaptop(up.Target != nil)
	c.mu.Lock()
	j := c.joinLocked(ctx, up)
	c.mu.Unlock()
	defer c.host.Unregister(c)
	quietCtx, done := context.WithCancel(ctx)
	defer done()
	stop := context.AfterFunc(c.host.Stopping(), func() { c.endWhenQuiet(quietCtx) })
	defer stop()
	rest, err := c.fromClient(first)
	if errors.Is(err, errHandOver) {
		return &upstream.Handover{First: rest, Up: c.release(j)}
	}
	c.end(err)
	report.End()
	return nil
}

// end passes the end of the client on and waits for that of the upstream.
func (c *Conn) end(err error) {
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

func (c *Conn) upstream() *joined {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.up
}

func (c *Conn) joinLocked(ctx context.Context, up *upstream.Upstream) *joined {
	j := &joined{Upstream: up, ended: make(chan struct{})}
	c.up = j
	go c.fromUpstream(ctx, j) // ends when up is closed; Serve waits for ended
	return j
}

// release stops the reading of the upstream, so that somebody else can read it.
func (c *Conn) release(up *joined) *upstream.Upstream {
	_ = up.SetReadDeadline(time.Unix(1, 0))
	<-up.ended
	_ = up.SetReadDeadline(time.Time{})
	c.mu.Lock()
	defer c.mu.Unlock()
	return &upstream.Upstream{Conn: up.Conn, Target: up.Target, Instead: up.Instead, Said: c.preface.takeLocked()}
}

// fromClient passes on what the client says. When the error is errHandOver, the upstream did not
// get rest.
func (c *Conn) fromClient(first []byte) (rest []byte, err error) {
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
func (c *Conn) onClientData(b []byte) error {
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
			c.host.Register(c)
			defer c.Review() // something may have changed since the upstream was chosen
		}
		if err := c.sendPrefaceLocked(); err != nil {
			c.mu.Unlock()
			return err
		}
	}
	up := c.up
	if first && !c.answered {
		c.opening.beginLocked(up.Upstream)
	}
	c.opening.keepLocked(up.Upstream, b)
	c.answered = false
	c.mu.Unlock()
	_, err := up.Write(b)
	if err != nil && c.replayed(up) {
		return nil // with b
	}
	return err
}

// handsOverLocked reports whether b, the first bytes of the client, are better served by somebody
// else: requests can be routed one by one.
func (c *Conn) handsOverLocked(b []byte) bool {
	if c.opaque || c.answered {
		return false
	}
	switch sniff.Classify(b) {
	case sniff.HTTP2:
		return true
	case sniff.HTTP1:
		return len(c.preface.held) == 0 // who speaks first is no HTTP/1 server
	default:
		return len(c.preface.held) == 0 && tlspeek.StartsTLS(b) && c.host.ByRequest(c.port)
	}
}

// replayed waits until the app has got what a silent laptop did not take, and reports whether it
// has.
func (c *Conn) replayed(up *joined) bool {
	c.mu.Lock()
	replaced, lost := c.up != up, c.opening.lostLocked(up.Upstream)
	c.mu.Unlock()
	if !replaced && lost {
		<-up.ended
		return c.upstream() != up
	}
	return replaced
}

// replayLocked gives the app what a silent laptop did not take, and reports whether the app has it.
func (c *Conn) replayLocked(ctx context.Context, up *joined) bool {
	if c.opening.TooLong || up.Target.ErrorOnFailure {
		return false
	}
	next, err := c.open(ctx, nil, nil)
	if err != nil {
		return false
	}
	_ = next.SetWriteDeadline(time.Now().Add(upstream.AppTimeout))
	_, err = next.Write(c.opening.Bytes)
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
func (c *Conn) fromUpstream(ctx context.Context, up *joined) {
	defer close(up.ended)
	err := c.copyBack(up)
	c.mu.Lock()
	defer c.mu.Unlock()
	lost := c.opening.lostLocked(up.Upstream)
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

func (c *Conn) copyBack(up *joined) error {
	if len(up.Said) > 0 {
		if err := c.onUpstreamData(up.Said); err != nil {
			return err
		}
	}
	return readLoop(up.Conn, c.onUpstreamData)
}

// onUpstreamData passes b on to the client.
func (c *Conn) onUpstreamData(b []byte) error {
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

// Review asks the client of an HTTP/2 connection to open another one if its requests do not belong
// to this upstream any more, or the pod ends.
func (c *Conn) Review() {
	if c.host.PodEnding() || c.host.ByRequest(c.port) || c.host.Global(c.port) != c.upstream().Target {
		c.frames.ask(c.client)
	}
}

// open returns given if it leads where the client wants, and otherwise connects there. The app
// takes the place of an unreachable laptop.
func (c *Conn) open(
	ctx context.Context, want *intercepts.Target, given *upstream.Upstream,
) (*upstream.Upstream, error) {
	if given != nil {
		if len(given.Said) > 0 || given.Target == want && upstream.Alive(given.Conn) {
			return given, nil
		}
		_ = given.Close()
	}
	return c.host.Open(ctx, want, c.client, c.port)
}

// endWhenQuiet ends the connection once the upstream was the last to speak and then nobody speaks
// for a while.
func (c *Conn) endWhenQuiet(ctx context.Context) {
	if upstream.AwaitQuiet(ctx, func() (uint64, bool) {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.activity.Load(), c.answered && c.protocol != sniff.HTTP2
	}) {
		_ = c.client.SetReadDeadline(time.Now())
	}
}
