package agent

import "time"

const (
	// headTimeout is how long a client may take for the head of a request, headsLimit how much of all such heads may wait, in bytes. Beyond them
	// the app gets what has come and the rest of the connection: it has limits of its own, which the agent must not keep from it.
	headTimeout = 10 * time.Second
	headsLimit  = 4 << 20
)

// heads is what a client has sent of a head that has not come as a whole.
type heads struct {
	begun bool
	held  int // bytes of the budget
}

// room says whether so many bytes more of a head may be kept.
func (e *exchange) room(n int) bool {
	h := &e.head
	if !h.begun {
		h.begun = true
		_ = e.client.SetReadDeadline(time.Now().Add(e.agent.headTimeout))
	}
	if !e.agent.heads.take(n) {
		return false
	}
	h.held += n
	return true
}

// headEnds gives back what room has taken.
func (e *exchange) headEnds() {
	if h := &e.head; h.begun {
		e.agent.heads.give(h.held)
		*h = heads{}
		_ = e.client.SetReadDeadline(time.Time{})
	}
}
