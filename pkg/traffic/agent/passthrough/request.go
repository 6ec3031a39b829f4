//go:build linux

package passthrough

import (
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/tlspeek"
	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// httpState follows a connection as far as the loop needs to know where an HTTP/1 request begins.
type httpState struct {
	protocol sniff.Protocol
	appSent  bool // the app has sent bytes since the client last did
	opaque   bool // the connection is no longer HTTP, or the end of its answers is unknown
	used     bool // the app received bytes before the ones that the client sends now
	// head is the head of the request to hand over, and choice what Config.Choose returned for it.
	head   *http1.Head
	choice any
	// answers follows the answers while the loop looks at each request. Elsewhere it is nil. While
	// it is set, whatever the client sends begins a request.
	answers *http1.Answers
	// The fields below are for HTTP/2.
	frames sniff.Frames // follows the frames of the app
	goaway goawayState
}

// feedClient follows b, which the client sent. It reports whether b begins a request that may go to
// another upstream than the request before it.
func (h *httpState) feedClient(b []byte) bool {
	appSent := h.appSent
	h.appSent = false
	if h.protocol == sniff.Unknown {
		if h.protocol = sniff.Classify(b); appSent && h.protocol == sniff.HTTP1 {
			h.protocol = sniff.Other // a server that sends first is not an HTTP/1 server
		}
		return h.protocol == sniff.HTTP1
	}
	return h.answers != nil || h.protocol == sniff.HTTP1 && !h.opaque && appSent && sniff.StartsRequest(b)
}

// feedApp follows b, which the app sent.
func (h *httpState) feedApp(b []byte) {
	if h.answers != nil {
		h.answers.Feed(b)
	}
	if h.protocol == sniff.Unknown {
		h.frames.Feed(b) // an HTTP/2 server may send first
	}
	if h.appSent {
		return
	}
	h.appSent = true
	if h.protocol == sniff.HTTP1 && sniff.SwitchesProtocol(b) {
		h.opaque = true
	}
}

// verdict is what happens to bytes that a client sends.
type verdict int

const (
	verdictToApp    verdict = iota
	verdictHandOver         // hand the connection over with these bytes
	verdictHold             // hand it over when the answers in progress are complete
)

// classify returns what happens to b, which the client sent.
func (l *loop) classify(p *pair, b []byte) verdict {
	h := &p.http
	opening := h.protocol == sniff.Unknown && !h.appSent
	h.used = !opening
	h.head, h.choice = nil, nil
	begins := h.feedClient(b)
	policy := l.config.Policy(p.port)
	if policy == ToApp {
		h.answers = nil
		return verdictToApp
	}
	if policy == ByRequest && opening && h.needsMoreBytes(b) {
		return verdictHandOver
	}
	if h.protocol == sniff.HTTP2 && h.goaway == goawayNone { // it began while the policy changed
		h.goaway = goawayDue
	}
	if !begins {
		return verdictToApp
	}
	return l.classifyRequest(p, b, policy, opening)
}

// classifyRequest returns what happens to b, which begins a request, on a port whose policy is not
// ToApp. opening reports whether b is the first bytes of the connection.
func (l *loop) classifyRequest(p *pair, b []byte, policy Policy, opening bool) verdict {
	h := &p.http
	if h.answers != nil && h.answers.Lost() {
		h.answers, h.opaque = nil, true
		return verdictToApp
	}
	if policy == ByRequest && (h.answers != nil || opening || l.isIdle(p)) && l.isForApp(p, b) {
		return verdictToApp
	}
	switch {
	case h.answers != nil && (!h.answers.Between() || p.client.hasBacklog() || p.app.hasBacklog()):
		return verdictHold
	case h.answers == nil && !l.isIdle(p):
		return verdictToApp
	}
	return verdictHandOver
}

// needsMoreBytes reports whether only somebody who reads more than b, the first bytes of a client,
// can know what the client sends: HTTP/2, TLS, or the first part of an HTTP/1 request.
func (h *httpState) needsMoreBytes(b []byte) bool {
	return h.protocol == sniff.HTTP2 ||
		h.protocol == sniff.Other && (sniff.BeginsRequest(b) || tlspeek.StartsTLS(b))
}

// isForApp reports whether b is one simple request that is for the app alone. It then expects the
// answer. If the request is simple but not for the app alone, isForApp keeps its head and the
// choice for the handover.
func (l *loop) isForApp(p *pair, b []byte) bool {
	r := parseSimpleRequest(b)
	if r == nil {
		return false
	}
	choice, app := l.config.Choose(p.port, r)
	if app {
		p.http.expectAnswer(p, r.Method)
		return true
	}
	p.http.head, p.http.choice = r, choice
	return false
}

// expectAnswer follows the answer to a request that the app receives.
func (h *httpState) expectAnswer(p *pair, method string) {
	if h.answers == nil {
		h.answers = new(http1.Answers)
		p.app.fullReads = 0
	}
	h.answers.Expect(method)
}

// parseSimpleRequest returns the head of the request in b. It returns nil unless b is exactly one
// request, and one after which the connection goes on as before.
func parseSimpleRequest(b []byte) *http1.Head {
	r, err := http1.ParseRequest(b)
	if err != nil || r.Framing == http1.Chunked || len(r.Raw)+int(r.Length) != len(b) ||
		r.Has("Upgrade") || r.Has("Expect") {
		return nil
	}
	return r
}

// isIdle reports whether no bytes of the app are on their way to the client.
func (l *loop) isIdle(p *pair) bool {
	unread, err := unix.IoctlGetInt(p.app.fd, unix.TIOCINQ)
	return err == nil && unread == 0 && !p.client.hasBacklog() && !p.app.hasBacklog()
}

// releaseRequest hands over the held request when the answers before it are complete. If their end
// is unknown, it sends the request to the app. It reports whether the pair is still open.
func (l *loop) releaseRequest(p *pair) bool {
	b := p.heldRequest
	switch {
	case b == nil:
	case p.http.answers.Lost():
		p.heldRequest, p.http.answers, p.http.opaque = nil, nil, true
		if !l.write(&p.app, b) {
			return false
		}
		l.updateInterest(&p.client)
	case p.http.answers.Between() && !p.client.hasBacklog() && !p.app.hasBacklog():
		// The chosen intercept may have ended while the request waited.
		p.http.head, p.http.choice = nil, nil
		l.handOver(p, b)
		return false
	}
	return true
}

// holdsPreface reports whether b, which the app sends before its client has sent anything, must
// wait. An HTTP/2 server may send its preface at once (RFC 9113, section 3.4). If the connection is
// handed over, the client receives another preface, so it must not receive this one.
func (l *loop) holdsPreface(p *pair, b []byte) bool {
	return p.http.protocol == sniff.Unknown && !p.http.appSent && !p.client.eof &&
		sniff.StartsHTTP2Server(b) && l.config.Policy(p.port) == ByRequest
}

// releasePreface passes the held preface to the client. It reports whether the pair is still open.
func (l *loop) releasePreface(p *pair) bool {
	b := p.preface
	p.preface = nil
	p.http.feedApp(b)
	open := false
	if p.http.protocol == sniff.HTTP2 {
		open = l.writeFrames(p, b)
	} else {
		open = l.write(&p.client, b)
	}
	if open {
		l.updateInterest(&p.app)
	}
	return open
}
