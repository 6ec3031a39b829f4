package upstream

import (
	"context"
	"time"
)

// quietAfter is how long neither side may have spoken before a connection counts as idle, where the
// agent does not know the protocol.
const quietAfter = time.Second

// AwaitQuiet waits until a connection that may end was quiet for a second, and reports whether it
// was so before ctx ended. state returns how often the two sides have spoken, and whether the
// connection may end now.
func AwaitQuiet(ctx context.Context, state func() (activity uint64, mayEnd bool)) bool {
	tick := time.NewTicker(quietAfter)
	defer tick.Stop()
	for before, _ := state(); ; {
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
		now, mayEnd := state()
		if mayEnd && now == before {
			return true
		}
		before = now
	}
}
