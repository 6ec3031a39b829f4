package agents

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Agents get their configuration once every Intercept that existed at the start has been
// reconciled, whatever the order, and not earlier.
func TestInitialSync(t *testing.T) {
	one, two := client.ObjectKey{Namespace: "shop", Name: "one"}, client.ObjectKey{Namespace: "shop", Name: "two"}
	expect := func(keys ...client.ObjectKey) func(*InitialSync) {
		return func(s *InitialSync) { s.Expect(keys) }
	}
	reconciled := func(key client.ObjectKey) func(*InitialSync) {
		return func(s *InitialSync) { s.Reconciled(key) }
	}
	finish := (*InitialSync).Finish
	for name, c := range map[string]struct {
		steps     []func(*InitialSync)
		doneAfter int // that many of the steps
	}{
		"no intercepts": {steps: []func(*InitialSync){expect()}, doneAfter: 1},
		"listed before they are reconciled": {
			steps: []func(*InitialSync){
				expect(one, two), reconciled(two), reconciled(two), reconciled(one), reconciled(one),
			},
			doneAfter: 4,
		},
		"reconciled before they are listed": {
			steps: []func(*InitialSync){reconciled(one), reconciled(two), expect(one, two)}, doneAfter: 3,
		},
		"a new one is reconciled meanwhile": {
			steps: []func(*InitialSync){reconciled(one), expect(two), reconciled(two)}, doneAfter: 3,
		},
		"one that cannot be reconciled": {
			steps: []func(*InitialSync){expect(one), finish, reconciled(one), finish}, doneAfter: 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := NewInitialSync()
			for i, step := range c.steps {
				assert.False(t, i < c.doneAfter && s.isDone(), "step %d", i)
				step(s)
			}
			assert.True(t, s.isDone())
		})
	}
}
