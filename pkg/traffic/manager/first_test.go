package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Agents are told what is in force when all that there was has been looked at, in whatever order one comes to know of it, and never later than that.
func TestFirstRound(t *testing.T) {
	one, two := client.ObjectKey{Namespace: "shop", Name: "one"}, client.ObjectKey{Namespace: "shop", Name: "two"}
	for name, c := range map[string]struct {
		steps []func(*first)
		over  int // after so many of them
	}{
		"none":               {[]func(*first){func(f *first) { f.want(nil) }}, 1},
		"known first":        {[]func(*first){func(f *first) { f.want([]client.ObjectKey{one, two}) }, func(f *first) { f.did(two) }, func(f *first) { f.did(two) }, func(f *first) { f.did(one) }, func(f *first) { f.did(one) }}, 4},
		"looked at first":    {[]func(*first){func(f *first) { f.did(one) }, func(f *first) { f.did(two) }, func(f *first) { f.want([]client.ObjectKey{one, two}) }}, 3},
		"one that is new":    {[]func(*first){func(f *first) { f.did(one) }, func(f *first) { f.want([]client.ObjectKey{two}) }, func(f *first) { f.did(two) }}, 3},
		"one that is broken": {[]func(*first){func(f *first) { f.want([]client.ObjectKey{one}) }, func(f *first) { f.end() }, func(f *first) { f.did(one) }, func(f *first) { f.end() }}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFirst()
			for i, step := range c.steps {
				assert.False(t, i < c.over && f.isOver(), "step %d", i)
				step(f)
			}
			assert.True(t, f.isOver())
		})
	}
}
