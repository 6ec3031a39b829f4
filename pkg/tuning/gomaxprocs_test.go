package tuning

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestProcessorDecision(t *testing.T) {
	var d processorDecision
	start := time.Now()
	for _, step := range []struct {
		at    time.Duration
		share float64
		all   bool
		why   string
	}{
		{at: 0, share: 0.1, all: false, why: "there is little to do"},
		{at: 100, share: 0.7, all: false, why: "one processor is enough"},
		{at: 200, share: 0.9, all: true, why: "one processor is full"},
		{at: 300, share: 1.6, all: true, why: "two processors are used"},
		{at: 400, share: 0.3, all: true, why: "the pause is short"},
		{at: 1200, share: 0.7, all: true, why: "the pause was not long enough"},
		{at: 2100, share: 0.5, all: true, why: "the pause begins"},
		{at: 2300, share: 0.5, all: false, why: "one processor was enough for a second"},
		{at: 2400, share: 0.7, all: false, why: "one processor is enough until it is full"},
	} {
		require.Equal(t, step.all, d.next(step.share, start.Add(step.at*time.Millisecond)), step.why)
	}
}

func TestAdaptGOMAXPROCSEndsWithAllProcessors(t *testing.T) {
	all := runtime.GOMAXPROCS(0)
	if all == 1 {
		t.Skip("this machine has one processor")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); AdaptGOMAXPROCS(ctx) }()
	require.Eventually(t, func() bool { return runtime.GOMAXPROCS(0) == 1 }, time.Minute, time.Millisecond)
	cancel()
	<-ended
	require.Equal(t, all, runtime.GOMAXPROCS(0))
}

// BenchmarkGOMAXPROCS passes a message through a chain of goroutines, as a request does, with one
// processor and with all of them. The processor time of the process says more than the time that
// passes.
func BenchmarkGOMAXPROCS(b *testing.B) {
	for name, processors := range map[string]int{"one": 1, "all": runtime.NumCPU()} {
		b.Run(name, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(processors))
			const hops = 12
			first := make(chan struct{})
			last := first
			for range hops {
				in, out := last, make(chan struct{})
				// Each goroutine ends when the one before has closed its channel.
				go func() {
					defer close(out)
					for m := range in {
						out <- m
					}
				}()
				last = out
			}
			b.ResetTimer()
			start, _ := cpuTime()
			for range b.N {
				first <- struct{}{}
				<-last
			}
			used, _ := cpuTime()
			b.ReportMetric(float64(used-start)/float64(b.N), "cpu-ns/op")
			close(first)
			<-last
		})
	}
}
