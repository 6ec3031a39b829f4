package agent

import (
	"context"
	"net"
	"time"

	"github.com/detour-dev/detour/pkg/traffic/agent/attach"
)

const (
	// unusedFor is how long an attached agent waits for the next intercept before it asks its
	// clients to open other connections, which bypass it, and ends when they have. A laptop that is
	// away for longer gets a new agent when it is back.
	unusedFor   = 10 * time.Second
	unusedCheck = time.Second
)

// attach makes the agent redirect its ports itself.
func (a *agent) attach(listeners map[uint16]*net.TCPListener) (err error) {
	ports, probed := map[uint16]uint16{}, map[uint16]bool{}
	for _, p := range a.config.Ports {
		ports[p.App] = uint16(listeners[p.App].Addr().(*net.TCPAddr).Port)
		probed[p.App] = p.Probed
	}
	a.table.SetProbed(probed)
	a.attachment, err = attach.New(ports, a.log)
	return err
}

// leaving reports whether clients of a port without intercepts are to open other connections, past
// this agent, which nobody needs.
func (a *agent) leaving() bool { return a.attachment != nil && a.PodEnding() }

// endUnused ends the agent when no intercept has needed it for a while, and no client does.
func (a *agent) endUnused(ctx context.Context) error {
	tick := time.NewTicker(unusedCheck)
	defer tick.Stop()
	for needed := time.Now(); ; {
		select {
		case <-ctx.Done():
			return nil
		case err := <-a.attachment.Failed():
			return err
		case <-tick.C:
		}
		switch {
		case len(a.table.Ports()) > 0:
			needed = time.Now()
		case time.Since(needed) < unusedFor:
		case a.attachment.Connected():
			a.podEnds()
			a.tellConnections()
		default:
			a.attachment.Withdraw()
			a.life.stop()
			return nil
		}
	}
}
