package tuning

import (
	"context"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestScale(t *testing.T) {
	var s scale
	start := time.Now()
	for _, step := range []struct {
		at    time.Duration
		share float64
		all   bool
		why   string
	}{
		{0, 0.1, false, "little to do"},
		{100, 0.7, false, "one processor is enough"},
		{200, 0.9, true, "one processor is full"},
		{300, 1.6, true, "two are used"},
		{400, 0.3, true, "a short pause"},
		{1200, 0.7, true, "no pause long enough"},
		{2100, 0.5, true, "the pause begins"},
		{2300, 0.5, false, "a second with less than one can do"},
		{2400, 0.7, false, "and one is enough until it is full"},
	} {
		require.Equal(t, step.all, s.next(step.share, start.Add(step.at*time.Millisecond)), step.why)
	}
}

func TestAProgramThatWorksGetsAllProcessors(t *testing.T) {
	all := runtime.GOMAXPROCS(0)
	if all == 1 {
		t.Skip("there is only one")
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); AdaptGOMAXPROCS(ctx) }()
	require.Eventually(t, func() bool { return runtime.GOMAXPROCS(0) == 1 }, time.Minute, time.Millisecond)
	cancel()
	<-ended
	require.Equal(t, all, runtime.GOMAXPROCS(0), "all are there again at the end")
}
