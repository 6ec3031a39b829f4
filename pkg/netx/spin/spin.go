// Package spin says when a thread that waits for a small message should look for it for a moment before it falls asleep.
package spin

const (
	// Iterations is how often to look, giving way after each time to whoever else wants the processor. It takes about 1 µs each.
	Iterations = 50

	gainTry   = 3 // what a new try begins with
	gainMax   = 20
	sleepsMax = 1000 // sleeps between two tries
)

// Policy is whether it pays to look. To fall asleep and be woken costs more than to carry a small message, so where something usually
// comes at once it is looked for first. Where that is in vain more than once in three times it stops, and is tried again much later: neither who is
// idle nor who is busy pays for it.
type Policy struct {
	gain   int // looking pays while it is positive
	sleeps int // how often to sleep before looking again
}

// ShouldSpin says whether to look before falling asleep this time.
func (g *Policy) ShouldSpin() bool {
	if g.gain > 0 {
		return true
	}
	if g.sleeps--; g.sleeps > 0 {
		return false
	}
	g.sleeps, g.gain = sleepsMax, gainTry
	return true
}

// Record says whether something came.
func (g *Policy) Record(came bool) {
	if came {
		g.gain = min(g.gain+1, gainMax)
	} else {
		g.gain -= 2
	}
}
