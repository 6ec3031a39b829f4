package agent

import (
	"time"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// greeting is what a laptop's server of HTTP/2 says before its client has said anything, as gRPC's does. Who serves the connection request by
// request greets the client himself, so it waits for the client's first word, though not for long: there are protocols to be kept apart.
type greeting struct {
	said   []byte
	waited bool // long enough
	leaves bool // the connection is given away, and its upstream with it
	timer  *time.Timer
}

// greets keeps b if the upstream greets; c.mu is held.
func (c *connection) greets(b []byte) bool {
	g := &c.greeting
	switch {
	case g.leaves:
	case c.proto != sniff.Unknown || c.up.target == nil || c.answered || g.waited:
		return false
	case len(g.said) == 0 && !sniff.StartsHTTP2Server(b):
		return false
	}
	if g.timer == nil {
		g.timer = time.AfterFunc(silence, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if !g.leaves {
				_ = c.release()
			}
		})
	}
	g.said = append(g.said, b...)
	return true
}

// release lets the client have what the upstream greeted with; c.mu is held.
func (c *connection) release() error {
	g := &c.greeting
	g.waited = true
	if g.timer != nil {
		g.timer.Stop()
	}
	b := g.said
	if len(b) == 0 {
		return nil
	}
	g.said, c.answered = nil, true
	return c.frames.write(c.client, b)
}

// give stops reading up, so that others can.
func (c *connection) give(up *upstream) {
	_ = up.SetReadDeadline(time.Unix(1, 0))
	<-up.ended
	_ = up.SetReadDeadline(time.Time{})
}

// given is the upstream of a connection of HTTP/2 that was given away, or nil.
func (c *connection) given() *upstream {
	g := &c.greeting
	if !g.leaves {
		return nil
	}
	if g.timer != nil {
		g.timer.Stop()
	}
	up := &upstream{Conn: c.up.Conn, target: c.up.target}
	if len(g.said) > 0 {
		up.Conn = &netx.PrefixedConn{Conn: up.Conn, Prefix: g.said}
	}
	return up
}
