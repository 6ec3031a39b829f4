//go:build linux

package passthrough

import "github.com/detour-dev/detour/pkg/traffic/agent/sniff"

// httpState follows as much of a connection as it takes to know where an HTTP/1 request begins.
type httpState struct {
	protocol sniff.Protocol
	answered bool // the app has spoken since the client last did
	upgraded bool // no longer HTTP
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
	first := h.protocol == sniff.Unknown
	if first {
		h.protocol = sniff.Classify(b)
	}
	answered := h.answered
	h.answered = false
	return h.protocol == sniff.HTTP1 && !h.upgraded && (first || answered) && sniff.StartsRequest(b)
}

func (h *httpState) appSaid(b []byte) {
	if h.answered {
		return
	}
	h.answered = true
	if h.protocol == sniff.HTTP1 && sniff.SwitchesProtocol(b) {
		h.upgraded = true
	}
}
