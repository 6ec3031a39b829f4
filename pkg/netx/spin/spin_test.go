package spin

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// share is how often it is looked in 10,000 waits when something comes at once in that part of them.
func share(comes, of int) (looked int) {
	var g Policy
	for i := range 10_000 {
		if g.ShouldSpin() {
			looked++
			g.Record(i%of < comes)
		}
	}
	return looked
}

func TestGain(t *testing.T) {
	assert.Equal(t, 10_000, share(1, 1), "what always comes is always looked for")
	assert.Equal(t, 10_000, share(3, 4), "nor is it given up for what mostly comes")
	assert.Less(t, share(0, 1), 50, "what never comes is looked for at times")
	assert.Less(t, share(1, 2), 500, "so is what comes too seldom")
	var g Policy
	for g.ShouldSpin() {
		g.Record(false)
	}
	waits := 0
	for ; !g.ShouldSpin(); waits++ {
		require.Less(t, waits, 2*sleepsMax, "it is tried again")
	}
}
