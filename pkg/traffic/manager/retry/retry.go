// Package retry repeats what the traffic-manager asks of the API server while the manager starts.
// Start with Do.
package retry

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// limit is how long the start waits for the API server. Kubernetes restarts a container that exits
// after longer and longer pauses, and the liveness probe ends one that does not serve within a
// minute.
const limit = 45 * time.Second

// Do calls do until it succeeds, ctx ends, or 45 s are over, and returns its last error. An API
// server may be starved, or it may be starting: then it even refuses requests that it will allow
// later.
func Do(ctx context.Context, log *slog.Logger, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	backoff := wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 0.1, Cap: 5 * time.Second, Steps: 10}
	for {
		err := do(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause := backoff.Step()
		log.Warn("a request to the API server failed: trying again", "duration", pause, "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(pause):
		}
	}
}
