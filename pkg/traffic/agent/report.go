package agent

import (
	"context"
	"maps"
	"strings"
	"sync"
	"time"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const (
	// reportLimit is how many routed requests wait to be reported; more are only counted.
	reportLimit = 512
	// reportPause gathers what happens within it, droppedPause the counts of dropped copies, which end in an object's status.
	reportPause  = 100 * time.Millisecond
	droppedPause = 3 * time.Second
	// maxPath bounds a path that is reported, in bytes.
	maxPath = 512
)

// report gathers what the manager is told. Nothing happens here while nobody tails and no copy is dropped.
type report struct {
	mu      sync.Mutex
	routed  []*agentv1.Routed
	missed  uint64
	dropped map[string]uint64 // by intercept
	told    map[string]uint64 // what the manager knows of dropped
	toldAt  time.Time
	poke    chan struct{}
}

func newReport() *report {
	return &report{dropped: map[string]uint64{}, poke: make(chan struct{}, 1)}
}

func (r *report) wake() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

func (r *report) add(m *agentv1.Routed) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.routed) < reportLimit {
		r.routed = append(r.routed, m)
	} else {
		r.missed++
	}
	r.wake()
}

// drop counts copies that a laptop does not get.
func (r *report) drop(t *target, n uint64) {
	if n == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.dropped[t.Uid] += n
	r.wake()
}

// forget drops the counts of an intercept that has ended.
func (r *report) forget(t *target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.dropped, t.Uid)
}

// take is what there is to report now, or nil, and whether something is left for later.
func (r *report) take(now time.Time) (m *agentv1.Report, later bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m = &agentv1.Report{Routed: r.routed, Missed: r.missed}
	r.routed, r.missed = nil, 0
	if later = !maps.Equal(r.dropped, r.told); later && now.Sub(r.toldAt) >= droppedPause {
		later, r.toldAt, r.told = false, now, maps.Clone(r.dropped)
		m.Dropped = r.told
	}
	if len(m.Routed) == 0 && m.Missed == 0 && m.Dropped == nil {
		return nil, later
	}
	return m, later
}

// run sends reports until ctx ends.
func (r *report) run(ctx context.Context, send func(*agentv1.AgentMessage) error) {
	r.mu.Lock()
	r.told, r.toldAt = nil, time.Time{} // another manager knows nothing yet
	r.mu.Unlock()
	pause := time.NewTimer(0)
	defer pause.Stop()
	later := true
	for {
		if !later {
			select {
			case <-ctx.Done():
				return
			case <-r.poke:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-pause.C:
		}
		var m *agentv1.Report
		m, later = r.take(time.Now())
		if m != nil {
			if err := send(&agentv1.AgentMessage{Message: &agentv1.AgentMessage_Report{Report: m}}); err != nil {
				return
			}
		}
		pause.Reset(reportPause)
	}
}

// seen follows one request to its end, for those who tail the port. Nobody does when it is nil, and then nothing is done.
type seen struct {
	*agentv1.Routed
	agent *agent
	start time.Time
	once  sync.Once
}

// see begins to follow a request, or a connection that is not HTTP when it has no method.
func (a *agent) see(port uint16, method, requested string) *seen {
	t := a.table(port)
	if t == nil || !t.tailed {
		return nil
	}
	now := time.Now()
	return &seen{agent: a, start: now, Routed: &agentv1.Routed{AtUnixMicro: now.UnixMicro(), Port: uint32(port), Method: method, Path: pathOf(requested)}}
}

// pathOf is the path of what was requested, without the query and what else may be secret.
func pathOf(requested string) string {
	path, _, _ := strings.Cut(requested, "?")
	path, _, _ = strings.Cut(path, "#")
	if _, rest, ok := strings.Cut(path, "://"); ok && path[0] != '/' { // a whole URL, as proxies get it
		_, path, _ = strings.Cut(rest, "/")
		path = "/" + path
	}
	return strings.ToValidUTF8(path[:min(len(path), maxPath)], "�")
}

// went says whose a request is, and which of the laptop and the app has it.
func (s *seen) went(owner, to *target) {
	if s == nil {
		return
	}
	s.owned(owner)
	s.Way = agentv1.Way_WAY_APP
	if to != nil {
		s.Way = agentv1.Way_WAY_LAPTOP
	}
}

func (s *seen) owned(owner *target) {
	if s != nil && owner != nil {
		s.InterceptUid = owner.Uid
	}
}

func (s *seen) copied(t *target) {
	if s != nil {
		s.Copied = append(s.Copied, t.Uid)
	}
}

func (s *seen) answered(status int) {
	if s != nil {
		s.Status = uint32(status)
	}
}

// end reports it, the first time.
func (s *seen) end() {
	if s == nil {
		return
	}
	s.once.Do(func() {
		s.DurationMicros = time.Since(s.start).Microseconds()
		s.agent.report.add(s.Routed)
	})
}
