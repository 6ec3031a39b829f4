// Package spin decides whether a thread that waits for a small message should poll for it a moment
// before it falls asleep. Start from [Policy].
//
// Falling asleep and being woken costs more than carrying a small message, so where a message
// usually comes at once, polling for it is cheaper. Where polling is in vain more than once in
// three times it stops, and is tried again much later: neither an idle connection nor a busy
// processor pays for it.
//
// Gain: the agent's passthrough 0.49 -> 0.62 of the plain requests per second on one connection,
// requests that a laptop answers 2,424 -> 2,623 per second. Cost: up to Iterations microseconds of
// processor time in vain; without the policy it took the processor from a busy pod (idle.rps16 0.79
// of plain, 0.84 with it). Measured in the cluster and in the laboratory
// (docs/design/performance-log.md); netx.BenchmarkSpin compares it with sleeping.
package spin

const (
	// Iterations is how often to poll. After each time the thread yields the processor to others.
	// One iteration takes about 1 µs.
	Iterations = 50

	scoreTry  = 3 // the score that a new attempt starts with
	scoreMax  = 20
	sleepsMax = 1000 // sleeps between two attempts
)

// Policy remembers whether polling pays. The zero value is ready to use. It is for one goroutine at
// a time.
type Policy struct {
	score  int // polling pays while it is positive
	sleeps int // how often to sleep before the next attempt
}

// ShouldSpin reports whether to poll before falling asleep this time. If so, the caller calls
// Record.
func (p *Policy) ShouldSpin() bool {
	if p.score > 0 {
		return true
	}
	if p.sleeps--; p.sleeps > 0 {
		return false
	}
	p.sleeps, p.score = sleepsMax, scoreTry
	return true
}

// Record notes whether a message came while the caller polled.
func (p *Policy) Record(came bool) {
	if came {
		p.score = min(p.score+1, scoreMax)
	} else {
		p.score -= 2
	}
}
