package raw

import (
	"time"

	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
)

// serverPreface is what the HTTP/2 server on a laptop says before its client has said anything, as
// a gRPC server does.
//
// Who serves an HTTP/2 connection request by request sends the client a preface of its own, so the
// server's waits for the client's first bytes. It does not wait for long, because the server may
// speak another protocol. Conn.mu guards it.
type serverPreface struct {
	held       []byte
	expired    bool // it has waited for long enough
	handedOver bool // the connection is handed over, together with its upstream
	timer      *time.Timer
}

// holdPrefaceLocked keeps b if it belongs to the server's preface, and reports whether it does.
func (c *Conn) holdPrefaceLocked(b []byte) bool {
	p := &c.preface
	switch {
	case p.handedOver:
	case c.protocol != sniff.Unknown || c.up.Target == nil || c.answered || p.expired:
		return false
	case len(p.held) == 0 && !sniff.StartsHTTP2Server(b):
		return false
	}
	if p.timer == nil {
		p.timer = time.AfterFunc(upstream.FirstBytesTimeout, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if !p.handedOver {
				_ = c.sendPrefaceLocked()
			}
		})
	}
	p.held = append(p.held, b...)
	return true
}

// sendPrefaceLocked gives the client what was held.
func (c *Conn) sendPrefaceLocked() error {
	p := &c.preface
	p.expired = true
	b := p.takeLocked()
	if len(b) == 0 {
		return nil
	}
	c.answered = true
	return c.frames.write(c.client, b)
}

// takeLocked returns what was held, and ends the waiting.
func (p *serverPreface) takeLocked() []byte {
	if p.timer != nil {
		p.timer.Stop()
	}
	b := p.held
	p.held = nil
	return b
}
