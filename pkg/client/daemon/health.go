package daemon

import (
	"cmp"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/explain"
)

// maxNotFoundStreak is how many answers in a row that the session is gone are not believed, if they
// may come from a proxy in front of the API server.
const maxNotFoundStreak = 5

// health collects what is known about the state of a session.
type health struct {
	// mu guards the fields below.
	mu             sync.Mutex
	problem        error // why the session has ended, or is not made again
	refusal        error // why the cluster does not let the session go on
	expired        bool  // refusal is about the credentials
	notFoundStreak int
	lastReceived   time.Time // by the tunnel, when the session was last seen in the cluster
}

// observe judges the result of reading the Session object. It reports whether the object is gone.
func (h *health) observe(err error, server string) (gone bool) {
	h.observeCredentials(err, server)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !apierrors.IsNotFound(err) || cluster.IsAbsent(err) {
		h.notFoundStreak = 0
	} else {
		h.notFoundStreak = min(h.notFoundStreak+1, maxNotFoundStreak)
	}
	return cluster.IsAbsent(err) || h.notFoundStreak == maxNotFoundStreak
}

// observeCredentials notes whether the API server has refused the session's credentials.
func (h *health) observeCredentials(err error, server string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case apierrors.IsUnauthorized(err):
		h.expired = true
		explained := explain.Context{Doing: "read the session", Server: server}.Error(err)
		h.refusal = fmt.Errorf("%w; then run `detour connect`", explained)
	case err == nil && h.expired:
		h.expired, h.refusal = false, nil
	}
}

// setRefusal notes why the traffic-manager has no tunnel for the session, or nil.
func (h *health) setRefusal(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refusal = err
}

func (h *health) setProblem(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.problem = err
}

// received notes when the tunnel last received a message.
func (h *health) received(at time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.lastReceived = at
}

// silentSince returns the time of received.
func (h *health) silentSince() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.lastReceived
}

func (h *health) credentialsExpired() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.expired
}

// snapshot returns what is wrong with the session, or nil.
func (h *health) snapshot() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return cmp.Or(h.problem, h.refusal)
}
