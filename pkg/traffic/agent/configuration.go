package agent

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/detour-dev/detour/pkg/traffic/agent/control"
	"github.com/detour-dev/detour/pkg/traffic/agent/intercepts"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// forgetAfter is how long the last configuration holds without a manager. Then the app answers
	// again, and after forgetAllAfter also where it must not: by default a session without its
	// laptop lives no longer than that, with a manager.
	forgetAfter    = 10 * time.Second
	forgetAllAfter = 10 * time.Minute
)

// managerWatch puts the manager's configurations in force, and forgets the last one if the manager
// stays away: nobody would tell the agent when a laptop has gone.
type managerWatch struct {
	table      *intercepts.Table
	life       context.Context // of the agent
	started    time.Time
	configured atomic.Bool // a configuration has come

	// mu guards the field below, and orders the changes of table.
	mu      sync.Mutex
	pending *time.Timer // forgets; nil while the manager is there
}

// apply stops the timer and puts a configuration in force.
func (m *managerWatch) apply(c *agentv1.Config) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pending != nil {
		m.pending.Stop()
		m.pending = nil
	}
	m.table.Set(c.Intercepts, c.Tailed...)
	m.configured.Store(true)
}

// lost starts the timer, unless it runs already.
func (m *managerWatch) lost() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pending == nil {
		m.startLocked(forgetAfter, m.forgetLocked)
	}
}

// startLocked calls do, with mu held, after a while without a configuration.
func (m *managerWatch) startLocked(after time.Duration, do func()) {
	var own *time.Timer
	own = time.AfterFunc(after, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.pending == own && m.life.Err() == nil {
			do()
		}
	})
	m.pending = own
}

// forgetLocked makes the app answer, except for the intercepts whose requests it must not answer.
func (m *managerWatch) forgetLocked() {
	strict := m.table.Strict()
	m.table.Set(strict)
	if len(strict) > 0 {
		m.startLocked(forgetAllAfter-forgetAfter, func() { m.table.Set(nil) })
	}
}

// The methods below implement control.Handler.

var _ control.Handler = (*agent)(nil)

// Apply puts a configuration in force. It returns when the TLS of the ports that need it is known.
func (a *agent) Apply(ctx context.Context, c *agentv1.Config) {
	a.manager.apply(c)
	a.ports.Probe(ctx, a.ByRequest)
}

// Lost notes that the manager cannot be reached.
func (a *agent) Lost() { a.manager.lost() }

// PortStates returns what is known of the TLS of the app's ports.
func (a *agent) PortStates() []*agentv1.PortState { return a.ports.States() }

// StatesChanged has an element when PortStates returns something new.
func (a *agent) StatesChanged() <-chan struct{} { return a.ports.Changed() }

// SendReports sends reports until ctx ends.
func (a *agent) SendReports(ctx context.Context, send func(*agentv1.Report) error) {
	a.report.Run(ctx, send)
}
