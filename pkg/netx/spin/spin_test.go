package spin

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// spins returns how often 10,000 waits spin when a message comes at once in `hits` of `of` waits.
func spins(hits, of int) (n int) {
	var p Policy
	for i := range 10_000 {
		if p.ShouldSpin() {
			n++
			p.Record(i%of < hits)
		}
	}
	return n
}

func TestPolicySpinsWhileItPays(t *testing.T) {
	for name, c := range map[string]struct{ hits, of, min, max int }{
		"a message always comes":      {hits: 1, of: 1, min: 10_000, max: 10_000},
		"a message mostly comes":      {hits: 3, of: 4, min: 10_000, max: 10_000},
		"a message never comes":       {hits: 0, of: 1, min: 1, max: 49},
		"a message comes half a time": {hits: 1, of: 2, min: 1, max: 499},
	} {
		t.Run(name, func(t *testing.T) {
			n := spins(c.hits, c.of)
			require.GreaterOrEqual(t, n, c.min)
			require.LessOrEqual(t, n, c.max)
		})
	}
}

func TestPolicyTriesAgain(t *testing.T) {
	var p Policy
	for p.ShouldSpin() {
		p.Record(false)
	}
	for waits := 0; !p.ShouldSpin(); waits++ {
		require.Less(t, waits, 2*sleepsMax)
	}
}
