// Package tuning gives Go's scheduler as many processors as the program makes use of. With one, a goroutine that wakes another leaves
// it the processor; with several, it wakes a thread, and threads that have nothing to do look for work and take turns at that. Where a small
// request passes a dozen goroutines on its way, and other programs want the processors too, that is a fifth of what it costs
// (docs/performance.md). A program that would use more than one processor gets all.
package tuning

import (
	"context"
	"runtime"
	"time"
)

const (
	// How often it is looked while the program works, and while it has next to nothing to do.
	busyInterval = 100 * time.Millisecond
	idleInterval = time.Second
	// Shares of one processor's time: a program that uses less than idle has nothing to do; one that used more than full would use a second; and
	// one that uses less than light, for so long, can do with one again.
	idle, full, light = 0.05, 0.85, 0.6
	patience          = time.Second
)

// AdaptGOMAXPROCS goes on until ctx ends. Then the program has all processors again, as it has at the start.
func AdaptGOMAXPROCS(ctx context.Context) {
	used, ok := usedTime()
	if !ok || runtime.GOMAXPROCS(0) == 1 {
		return
	}
	defer runtime.SetDefaultGOMAXPROCS()
	last, interval := time.Now(), busyInterval
	s := scale{all: true, since: last}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(interval):
		}
		was, since := used, last
		used, _ = usedTime()
		last = time.Now()
		share := float64(used-was) / float64(last.Sub(since))
		if before := s.all; s.next(share, last) != before {
			if s.all {
				runtime.SetDefaultGOMAXPROCS()
			} else {
				runtime.GOMAXPROCS(1)
			}
		}
		interval = busyInterval
		if share < idle {
			interval = idleInterval
		}
	}
}

// scale says whether the program needs all processors.
type scale struct {
	all   bool
	since time.Time // when it last used enough for more than one
}

// next is told the share of one processor's time that the program used until now.
func (s *scale) next(share float64, now time.Time) bool {
	switch {
	case share > full || s.all && share > light:
		s.all, s.since = true, now
	case now.Sub(s.since) >= patience:
		s.all = false
	}
	return s.all
}
