package tuning

import (
	"context"
	"runtime"
	"time"

	"github.com/detour-dev/detour/pkg/netx"
)

// Adaptive GOMAXPROCS.
//
// With one processor, a goroutine that wakes another leaves it the processor. With several, it
// wakes a thread, and threads without work look for some and take turns at that. A small request
// passes a dozen goroutines on its way, and other programs want the processors too. So the process
// uses one processor as long as that is enough, and all of them as soon as it is not.
//
// Gain: daemon and manager used 30 % less processor time for a request over UDP (143 to 174 -> 99
// to 116 µs on 16 connections) and 20 % less for a byte. Cost: a busy second starts with one
// processor, and the process asks for its processor time up to ten times a second. With one
// processor alone, bulk was a third slower on an idle machine. The traffic-agent keeps all
// processors, because its epoll loops would take the only one along when they wait. Measured in the
// laboratory (docs/design/performance-log.md); BenchmarkGOMAXPROCS compares one processor with all.

const (
	// How often to look at the used processor time, while the process works and while it has next
	// to nothing to do.
	busyInterval = 100 * time.Millisecond
	idleInterval = time.Second

	// Shares of one processor's time: below idleShare the process has nothing to do, above
	// fullShare it would use a second processor, and below lightShare for lightTime one processor
	// is enough again.
	idleShare  = 0.05
	fullShare  = 0.85
	lightShare = 0.6
	lightTime  = time.Second
)

// AdaptGOMAXPROCS adapts GOMAXPROCS to the load until ctx ends. Then the process has all processors
// again, as at its start. Where the used processor time is unknown it does nothing.
func AdaptGOMAXPROCS(ctx context.Context) {
	used, ok := cpuTime()
	if !ok || runtime.GOMAXPROCS(0) == 1 {
		return
	}
	defer runtime.SetDefaultGOMAXPROCS()
	at, interval := time.Now(), busyInterval
	d := processorDecision{all: true, fullAt: at}
	for netx.Sleep(ctx, interval) == nil {
		usedBefore, before := used, at
		used, _ = cpuTime()
		at = time.Now()
		share := float64(used-usedBefore) / float64(at.Sub(before))
		if wasAll := d.all; d.next(share, at) != wasAll {
			if d.all {
				runtime.SetDefaultGOMAXPROCS()
			} else {
				runtime.GOMAXPROCS(1)
			}
		}
		interval = busyInterval
		if share < idleShare {
			interval = idleInterval
		}
	}
}

// processorDecision decides whether the process needs all processors.
type processorDecision struct {
	all    bool
	fullAt time.Time // when one processor was last not enough
}

// next takes the share of one processor's time that the process has used since the last call.
func (d *processorDecision) next(share float64, now time.Time) (all bool) {
	switch {
	case share > fullShare || d.all && share > lightShare:
		d.all, d.fullAt = true, now
	case now.Sub(d.fullAt) >= lightTime:
		d.all = false
	}
	return d.all
}
