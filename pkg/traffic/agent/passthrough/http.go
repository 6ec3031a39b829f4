//go:build linux

package passthrough

import "github.com/detour-dev/detour/pkg/traffic/agent/sniff"

// httpState follows as much of a connection as it takes to know where an HTTP/1 request begins.
type httpState struct {
	protocol sniff.Protocol
	answered bool // the app has spoken since the client last did
	upgraded bool // no longer HTTP
}

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
