package agent

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// The app's pod pays for the agent's memory, so its garbage is collected early, and at once where there would be more than this in all.
	collectAt   = 100 // percent of what lives
	memoryLimit = 22 << 20
	memoryLook  = time.Second
)

// saveMemory keeps the process small until ctx ends. The limit grows with what lives: below that, an agent with many connections would do nothing
// but collect.
func saveMemory(ctx context.Context) {
	debug.SetGCPercent(collectAt)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	tick := time.NewTicker(memoryLook)
	defer tick.Stop()
	for {
		metrics.Read(live)
		debug.SetMemoryLimit(limit(live[0].Value.Uint64()))
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// limit is how much memory an agent may have with so much that lives: half as much again, and what the runtime itself takes.
func limit(live uint64) int64 { return max(memoryLimit, int64(live+live/2)+memoryLimit/2) }
