package manager

import (
	"context"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
)

// firstPatience is how long agents wait at most for what is in force to be known. Without a manager they would have the apps answer soon after that.
const firstPatience = 5 * time.Second

// first is a new manager's first round through all Intercepts. Before it is over the manager does not know what is in force, and says nothing to the
// agents, which keep to what they were told before.
type first struct {
	mu   sync.Mutex
	done map[client.ObjectKey]bool
	all  []client.ObjectKey // nil until they are known
	over chan struct{}
}

func newFirst() *first {
	return &first{done: map[client.ObjectKey]bool{}, over: make(chan struct{})}
}

// did says that an Intercept was looked at.
func (f *first) did(key client.ObjectKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.isOver() {
		f.done[key] = true
		f.look()
	}
}

// want says which there are.
func (f *first) want(all []client.ObjectKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append([]client.ObjectKey{}, all...)
	f.look()
}

// end ends the round, whatever is missing.
func (f *first) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.isOver() {
		f.done = nil
		close(f.over)
	}
}

func (f *first) isOver() bool {
	select {
	case <-f.over:
		return true
	default:
		return false
	}
}

// look ends the round when nothing is missing.
func (f *first) look() {
	if f.all == nil || f.isOver() {
		return
	}
	for _, key := range f.all {
		if !f.done[key] {
			return
		}
	}
	f.done = nil
	close(f.over)
}

// firstRound finds out which Intercepts a manager begins with, once it leads. One that cannot be looked at holds nobody up for long.
func (r *interceptReconciler) firstRound(ctx context.Context) error {
	var list detour.InterceptList
	if err := r.List(ctx, &list); err != nil {
		r.options.Log.Warn("the intercepts to begin with could not be listed", "err", err)
		r.agents.first.end()
		return nil
	}
	keys := make([]client.ObjectKey, 0, len(list.Items))
	for i := range list.Items {
		keys = append(keys, client.ObjectKeyFromObject(&list.Items[i]))
	}
	r.agents.first.want(keys)
	select {
	case <-ctx.Done():
	case <-r.agents.first.over:
	case <-time.After(firstPatience):
		r.options.Log.Warn("not all intercepts could be looked at, and the agents are told of the others")
		r.agents.first.end()
	}
	return nil
}
