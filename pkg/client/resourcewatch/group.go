package resourcewatch

import (
	"context"
	"sync"
	"time"
)

// livenessInterval is how often a Group checks whether the laptop has lost the cluster.
const livenessInterval = time.Second

// Group runs followers that share a connection to the API server.
type Group struct {
	followers []*Follower
	hangUp    func()
	ctx       context.Context //nolint:containedctx // it is the group's lifetime
	stop      context.CancelFunc
	running   sync.WaitGroup
}

// Start runs followers until Close. hangUp closes the idle connections to the API server: a watch
// that is started again must not use the connection that has died.
func Start(hangUp func(), followers ...*Follower) *Group {
	ctx, stop := context.WithCancel(context.Background())
	g := &Group{followers: followers, hangUp: hangUp, ctx: ctx, stop: stop}
	for _, f := range followers {
		g.running.Go(func() { f.Run(ctx) })
	}
	return g
}

// FollowLiveness restarts all watches when alive changes, that is when the laptop loses the cluster
// and when it is back. Otherwise only HTTP/2's pings discover a connection that died silently,
// after 45 s. FollowLiveness returns at once; it must be called before Close.
func (g *Group) FollowLiveness(alive func() bool) {
	g.running.Go(func() {
		tick := time.NewTicker(livenessInterval)
		defer tick.Stop()
		lost := false
		for {
			select {
			case <-g.ctx.Done():
				return
			case <-tick.C:
			}
			now := alive()
			if now == lost {
				for _, f := range g.followers {
					f.Restart()
				}
				g.hangUp()
			}
			lost = !now
		}
	})
}

// Close ends the followers and waits for them.
func (g *Group) Close() {
	g.stop()
	g.running.Wait()
}
