package netx

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestBackoffDoublesUpToItsMaximum(t *testing.T) {
	b := Backoff{Min: time.Second, Max: 5 * time.Second}
	pauses := func(n int) (all []time.Duration) {
		for range n {
			all = append(all, b.Next()/time.Second)
		}
		return all
	}
	require.Equal(t, []time.Duration{1, 2, 4, 5, 5}, pauses(5))
	b.Reset()
	require.Equal(t, []time.Duration{1, 2}, pauses(2))
	b.Max = 3 * time.Second // a limit that changes holds at once
	require.Equal(t, []time.Duration{3, 3}, pauses(2))
}

func TestBackoffJitterStaysWithinHalfOfThePause(t *testing.T) {
	b := Backoff{Min: time.Second, Max: time.Second, Jitter: true}
	for range 1000 {
		d := b.Next()
		require.GreaterOrEqual(t, d, time.Second/2)
		require.Less(t, d, 3*time.Second/2)
	}
}

func TestSleepEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		require.NoError(t, Sleep(t.Context(), time.Minute))
		require.Equal(t, time.Minute, time.Since(start))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorIs(t, Sleep(ctx, time.Hour), context.DeadlineExceeded)
		require.Equal(t, time.Minute+time.Second, time.Since(start))
	})
}
