package exchange

import (
	"time"

	"github.com/detour-dev/detour/pkg/traffic/agent/budget"
)

const (
	// DefaultHeadTimeout is how long a client may take for the head of a request, and
	// MaxIncompleteHeads how many bytes of incomplete heads may wait in all. Beyond either, the app
	// gets what has come and the rest of the connection: the app has limits of its own, which the
	// agent must not keep from it.
	DefaultHeadTimeout = 10 * time.Second
	MaxIncompleteHeads = 4 << 20
)

// headLimit bounds the head that a client is sending.
type headLimit struct {
	client  *side
	timeout time.Duration
	budget  *budget.Budget
	room    func(n int) bool // take; made once

	started bool // a head has come in part
	held    int  // bytes of the budget
}

func (h *headLimit) init(client *side, timeout time.Duration, b *budget.Budget) {
	h.client, h.timeout, h.budget = client, timeout, b
	h.room = h.take
}

// take reports whether n more bytes of a head may be kept. The first call starts the timeout.
func (h *headLimit) take(n int) bool {
	if !h.started {
		h.started = true
		_ = h.client.SetReadDeadline(time.Now().Add(h.timeout))
	}
	if !h.budget.Take(n) {
		return false
	}
	h.held += n
	return true
}

// end gives back what take has taken.
func (h *headLimit) end() {
	if h.started {
		h.budget.Give(h.held)
		h.started, h.held = false, 0
		_ = h.client.SetReadDeadline(time.Time{})
	}
}
