package laptop

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/detour-dev/detour/pkg/relay/mux"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// relayConn is one relay connection that carries mux streams to a laptop.
type relayConn struct {
	opened chan struct{} // closed when the fields below are set
	conn   *mux.Conn     // nil if it could not be opened
	silent bool          // the laptop did not answer
	err    error
}

// relayConns holds the relay connection that takes new streams.
type relayConns struct {
	// mu guards the fields below.
	mu      sync.Mutex
	current *relayConn // nil if there is none; the next stream opens one
	plain   bool       // the laptop's daemon does not speak mux
}

// errNoMux is the error of a laptop whose daemon is older than mux streams.
var errNoMux = errors.New("the laptop does not take mux streams")

// current returns the relay connection for a new stream and reports whether it existed before. It
// returns nil if the laptop does not take streams.
func (l *Link) current() (c *relayConn, existed bool) {
	r := &l.relays
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.plain {
		return nil, false
	}
	if r.current != nil {
		return r.current, true
	}
	c = &relayConn{opened: make(chan struct{})}
	r.current = c
	l.config.Go(func() {
		defer r.discard(c)
		l.serveRelayConn(c)
	})
	return c, false
}

// discard makes the next stream open a new relay connection instead of c.
func (r *relayConns) discard(c *relayConn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current == c {
		r.current = nil
	}
}

func (r *relayConns) setPlain() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plain = true
}

// renew makes the next stream open a new relay connection, because the current one may lead through
// a manager that has ended. Streams that are open stay on it.
func (r *relayConns) renew() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.plain = false
	c := r.current
	if c == nil {
		return
	}
	select {
	case <-c.opened:
		r.current = nil
		if c.conn != nil {
			c.conn.Retire()
		}
	default: // it is being opened: the manager decides about the old token
	}
}

// serveRelayConn opens a relay connection and serves it until it ends.
func (l *Link) serveRelayConn(c *relayConn) {
	l.openRelayConn(c)
	close(c.opened)
	if c.conn == nil {
		return
	}
	stop := context.AfterFunc(l.ctx, c.conn.Retire)
	defer stop()
	err := c.conn.Run()
	l.config.Log.Debug("a relay connection has ended", "intercept", l.config.UID, "err", err)
}

func (l *Link) openRelayConn(c *relayConn) {
	ctx, cancel := context.WithTimeout(l.ctx, DialTimeout)
	defer cancel()
	conn, status, err := l.dialRelay(ctx, &agentv1.RelayHeader{Multiplexed: true})
	switch {
	case err == nil && status == agentv1.RelayStatus_RELAY_STATUS_OK:
		// An older daemon does not know the field Multiplexed and has joined this to the process,
		// as any connection.
		_ = conn.Close()
		c.err = errNoMux
		l.relays.setPlain()
	case err == nil && status == agentv1.RelayStatus_RELAY_STATUS_MULTIPLEXED:
		c.conn = mux.New(conn, nil)
		c.conn.OnSilence(func() { l.onSilence(c) })
	default:
		if conn != nil {
			_ = conn.Close()
		}
		c.silent, c.err = isSilence(status, err), relayError(status, err)
	}
}

// onSilence makes the app answer until the laptop can be reached again. The laptop may still answer
// on this relay connection what it has acknowledged.
func (l *Link) onSilence(c *relayConn) {
	l.relays.discard(c)
	c.conn.Retire()
	l.config.Log.Debug("the laptop does not answer pings", "intercept", l.config.UID)
	l.markSilent(&agentv1.RelayHeader{})
}

// dialStream opens a stream to the laptop, or a connection of its own where the laptop takes no
// stream. silent reports whether the laptop did not answer at all.
func (l *Link) dialStream(ctx context.Context, header *agentv1.RelayHeader) (_ net.Conn, silent bool, _ error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	for {
		c, existed := l.current()
		if c == nil {
			return l.dialPlain(ctx, header)
		}
		select {
		case <-c.opened:
		case <-ctx.Done():
			return nil, true, ctx.Err()
		}
		if c.conn == nil {
			if errors.Is(c.err, errNoMux) || l.ctx.Err() != nil {
				return l.dialPlain(ctx, header)
			}
			return nil, c.silent, c.err
		}
		stream, err := c.conn.Open(
			ctx, &agentv1.RelayHeader{Source: header.Source, Destination: header.Destination})
		var refused *mux.RefusedError
		switch {
		case err == nil:
			return stream, false, nil
		case errors.As(err, &refused):
			return nil, isSilence(refused.Status, nil), err
		case errors.Is(err, mux.ErrTooManyStreams) || l.ctx.Err() != nil:
			return l.dialPlain(ctx, header)
		}
		l.relays.discard(c)
		c.conn.Retire()
		if ctx.Err() != nil || !existed {
			return nil, true, err
		}
		// The relay connection had ended already: open another.
	}
}
