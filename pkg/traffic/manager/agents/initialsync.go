package agents

import (
	"sync"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// InitialSync tracks a new manager's first pass over all Intercepts. Until the pass is done the
// manager does not know which intercepts are active, so it sends nothing to the agents, and they
// keep to the configuration that they have.
type InitialSync struct {
	// mu guards the fields below.
	mu         sync.Mutex
	reconciled map[client.ObjectKey]bool
	expected   []client.ObjectKey // nil until they are known
	done       chan struct{}
}

// NewInitialSync returns a pass that expects Intercepts which are not known yet.
func NewInitialSync() *InitialSync {
	return &InitialSync{reconciled: map[client.ObjectKey]bool{}, done: make(chan struct{})}
}

// Done returns a channel that is closed when the pass is done.
func (s *InitialSync) Done() <-chan struct{} { return s.done }

// Reconciled records that an Intercept was reconciled.
func (s *InitialSync) Reconciled(key client.ObjectKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.isDone() {
		s.reconciled[key] = true
		s.finishIfCompleteLocked()
	}
}

// Expect sets the Intercepts that the pass has to reconcile.
func (s *InitialSync) Expect(keys []client.ObjectKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expected = append([]client.ObjectKey{}, keys...)
	s.finishIfCompleteLocked()
}

// Finish ends the pass even if Intercepts are missing.
func (s *InitialSync) Finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finishLocked()
}

func (s *InitialSync) isDone() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

func (s *InitialSync) finishIfCompleteLocked() {
	if s.expected == nil {
		return
	}
	for _, key := range s.expected {
		if !s.reconciled[key] {
			return
		}
	}
	s.finishLocked()
}

func (s *InitialSync) finishLocked() {
	if !s.isDone() {
		s.reconciled = nil
		close(s.done)
	}
}
