package netx

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff computes the pauses between attempts: Min at first, then twice as long each time, up to
// Max. The zero value of the other fields is ready to use; it is for one goroutine.
//
// It stands in for k8s.io/apimachinery's wait.Backoff where Kubernetes' packages are not linked:
// the agent and the VIF.
type Backoff struct {
	Min, Max time.Duration
	// Jitter spreads each pause over half to one and a half of its length, so that many clients of
	// one server that has restarted do not all come back at the same time.
	Jitter bool

	next time.Duration
}

// Next returns the next pause.
func (b *Backoff) Next() time.Duration {
	d := min(max(b.next, b.Min), b.Max)
	b.next = min(2*d, b.Max)
	if b.Jitter {
		return d/2 + rand.N(d)
	}
	return d
}

// Reset makes the next pause Min again, after an attempt that succeeded.
func (b *Backoff) Reset() { b.next = 0 }

// Sleep waits for d, and returns early with the error of ctx when that ends first.
func Sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}
