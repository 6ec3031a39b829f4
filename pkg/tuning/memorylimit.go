package tuning

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
)

// A memory limit that follows the live heap.
//
// The app's pod pays for the traffic-agent's memory, so the agent collects its garbage early: when
// the heap has doubled, and at once when the process would be larger than memoryLimit. A fixed
// limit would make an agent with many connections do nothing but collect, so the limit grows with
// the live heap.
//
// Gain: an agent that has served intercepts stays at 18.5 MiB (rss.agent in docs/performance.md).
// Cost: more collections while an agent is small. `make bench` measures it; a Go benchmark cannot,
// because the limit holds for the process.
const (
	collectPercent = 100 // growth of the live heap after which the runtime collects
	memoryLimit    = 22 << 20
	limitInterval  = time.Second
)

// LimitMemory keeps the process small until ctx ends.
func LimitMemory(ctx context.Context) {
	debug.SetGCPercent(collectPercent)
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	for {
		metrics.Read(live)
		debug.SetMemoryLimit(limitFor(live[0].Value.Uint64()))
		if netx.Sleep(ctx, limitInterval) != nil {
			return
		}
	}
}

// limitFor returns the memory limit for a live heap of so many bytes: half as much again, and what
// the runtime itself needs.
func limitFor(live uint64) int64 { return max(memoryLimit, int64(live+live/2)+memoryLimit/2) }
