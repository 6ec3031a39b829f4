//go:build linux

package passthrough

import "github.com/detour-dev/detour/pkg/traffic/agent/sniff"

// goawayState is how far an HTTP/2 client is with moving to another connection. An HTTP/2
// connection has no gap between two requests. So the client receives a GOAWAY frame (RFC 9113,
// section 6.8), sends its next request on a new connection, and finishes the requests in progress
// on this one.
type goawayState int

const (
	goawayNone goawayState = iota
	goawayDue              // to be sent when a frame of the app ends
	goawaySent
)

// writeFrames passes HTTP/2 frames of the app to the client, and adds a GOAWAY frame if one is due.
// It reports whether the pair is still open.
func (l *loop) writeFrames(p *pair, b []byte) bool {
	end := p.http.frames.Feed(b)
	if p.http.goaway != goawayDue || end < 0 {
		return l.write(&p.client, b)
	}
	p.http.goaway = goawaySent
	return l.write(&p.client, b[:end]) && l.write(&p.client, sniff.Goaway) && l.write(&p.client, b[end:])
}

// reviewHTTP2 makes GOAWAY due on the HTTP/2 connections whose policy is no longer ToApp.
func (l *loop) reviewHTTP2() {
	for _, s := range l.sockets {
		if s == nil || s.pair == nil || s != &s.pair.client {
			continue
		}
		p := s.pair
		if p.http.protocol != sniff.HTTP2 || p.http.goaway != goawayNone || l.config.Policy(p.port) == ToApp {
			continue
		}
		p.http.goaway = goawayDue
		l.sendGoaway(p)
	}
}

// sendGoaway sends a GOAWAY frame to the client if one is due and no frame of the app is
// incomplete. It reports whether the pair is still open.
func (l *loop) sendGoaway(p *pair) bool {
	if p.http.goaway != goawayDue || !p.http.frames.Between() {
		return true
	}
	p.http.goaway = goawaySent
	return l.write(&p.client, sniff.Goaway)
}
