//go:build linux

package passthrough

import (
	"github.com/detour-dev/detour/pkg/tlspeek"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// httpState follows as much of a connection as it takes to know where an HTTP/1 request begins.
type httpState struct {
	protocol sniff.Protocol
	answered bool // the app has spoken since the client last did
	upgraded bool // no longer HTTP
	used     bool // the app had something before what the client says now
	// head is that of the request to be given away, and choice what becomes of it.
	head   *http1.Head
	choice any
	// answers are followed where requests are looked at one by one; nil elsewhere. Then the client begins a request whenever it speaks.
	answers *http1.Answers
	// of HTTP/2, where a connection has no end between two requests:
	frames sniff.Frames // the app's
	leave  leave
}

// leave is how far a client is with moving to another connection.
type leave int

const (
	stay leave = iota
	due        // to be asked when a frame of the app's ends
	asked
)

// clientSaid says whether b begins a request that may go elsewhere than the one before it.
func (h *httpState) clientSaid(b []byte) bool {
	answered := h.answered
	h.answered = false
	if h.protocol == sniff.Unknown {
		if h.protocol = sniff.Classify(b); answered && h.protocol == sniff.HTTP1 {
			h.protocol = sniff.Other // who speaks first is no HTTP/1 server
		}
		return h.protocol == sniff.HTTP1
	}
	return h.answers != nil || h.protocol == sniff.HTTP1 && !h.upgraded && answered && sniff.StartsRequest(b)
}

func (h *httpState) appSaid(b []byte) {
	if h.answers != nil {
		h.answers.Feed(b)
	}
	if h.protocol == sniff.Unknown {
		h.frames.Feed(b) // a server of HTTP/2 may greet first
	}
	if h.answered {
		return
	}
	h.answered = true
	if h.protocol == sniff.HTTP1 && sniff.SwitchesProtocol(b) {
		h.upgraded = true
	}
}

// pass is what becomes of what a client says.
type pass int

const (
	toApp pass = iota
	away       // to be given away
	hold       // to be given away when the answers before it have passed
)

// pass says what becomes of b, which the client says.
func (l *loop) pass(p *pair, b []byte) pass {
	h := &p.http
	opening := h.protocol == sniff.Unknown && !h.answered
	h.used = !opening
	h.head, h.choice = nil, nil
	begins := h.clientSaid(b)
	owner := l.config.Owner(p.port)
	if owner == App {
		h.answers = nil
		return toApp
	}
	if owner == ByRequest && opening && (h.protocol == sniff.HTTP2 || h.protocol == sniff.Other && (sniff.BeginsRequest(b) || tlspeek.StartsTLS(b))) {
		return away // who takes it reads on to know
	}
	if h.protocol == sniff.HTTP2 && h.leave == stay { // it has begun while Owner changed
		h.leave = due
	}
	if !begins {
		return toApp
	}
	if h.answers != nil && h.answers.Lost() {
		h.answers, h.upgraded = nil, true
		return toApp
	}
	if owner == ByRequest && (h.answers != nil || opening || l.quiet(p)) {
		if r := simple(b); r != nil {
			chosen, app := l.config.Choose(p.port, r)
			if app {
				h.expect(p, r.Method)
				return toApp
			}
			h.head, h.choice = r, chosen
		}
	}
	switch {
	case h.answers != nil && (!h.answers.Between() || p.client.full() || p.app.full()):
		return hold
	case h.answers == nil && !l.quiet(p):
		return toApp
	}
	return away
}

// expect follows the answer to a request that the app gets.
func (h *httpState) expect(p *pair, method string) {
	if h.answers == nil {
		h.answers = new(http1.Answers)
		p.app.bulk = 0
	}
	h.answers.Expect(method)
}

// early says whether b, which the app says before its client has said anything, has to wait: an HTTP/2 server may greet at once, and
// whoever takes the connection greets too.
func (l *loop) early(p *pair, b []byte) bool {
	return p.http.protocol == sniff.Unknown && !p.http.answered && !p.client.eof && sniff.StartsHTTP2Server(b) && l.config.Owner(p.port) == ByRequest
}

// simple is the request that b is the whole of, when it is one after which the connection goes on as before.
func simple(b []byte) *http1.Head {
	r, err := http1.ParseRequest(b)
	if err != nil || r.Framing == http1.Chunked || len(r.Raw)+int(r.Length) != len(b) || r.Has("Upgrade") || r.Has("Expect") {
		return nil
	}
	return r
}

// release lets what was held go where it belongs, when the answers before it have passed. It says whether the pair lives.
func (l *loop) release(p *pair) bool {
	b := p.held
	switch {
	case b == nil:
	case p.http.answers.Lost():
		p.held, p.http.answers, p.http.upgraded = nil, nil, true
		if !l.write(&p.app, b) {
			return false
		}
		l.want(&p.client)
	case p.http.answers.Between() && !p.client.full() && !p.app.full():
		p.http.head, p.http.choice = nil, nil // what was chosen may have ended while the request waited
		l.handOver(p, b)
		return false
	}
	return true
}
