package manager

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// patience is how long the start waits for the API server. A container that ends is started again later and later, and one that does not
// serve within a minute is ended by its liveness probe.
const patience = 45 * time.Second

// patiently does what asks the API server until that gives an answer: it may be starved, or just beginning, when it even refuses what it will allow.
func patiently(ctx context.Context, log *slog.Logger, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	backoff := wait.Backoff{Duration: 250 * time.Millisecond, Factor: 2, Jitter: 0.1, Cap: 5 * time.Second, Steps: 10}
	for {
		err := do(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		again := backoff.Step()
		log.Warn("the API server does not answer as it should: trying again", "in", again, "err", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(again):
		}
	}
}
