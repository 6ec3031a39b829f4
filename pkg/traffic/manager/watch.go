package manager

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/detour-dev/detour/pkg/route"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

// watcherLimit is how many requests wait for somebody who tails; more are only counted.
const watcherLimit = 1024

// watcher is somebody who tails. Its fields are guarded by the agents' mutex.
type watcher struct {
	ports   map[uint32]bool
	pods    map[string]string // UID -> name
	waiting []*tailv1.Request
	missed  uint64
	more    chan struct{}
}

// watch begins to gather the requests of ports of pods for w, or changes of which.
func (a *agents) watch(w *watcher, ports map[uint32]bool, pods map[string]string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, known := a.watchers[w]; known && maps.Equal(w.ports, ports) && maps.Equal(w.pods, pods) {
		return
	}
	a.watchers[w] = struct{}{}
	w.ports, w.pods = ports, pods
	a.wake()
}

func (a *agents) unwatch(w *watcher) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.watchers, w)
	a.wake()
}

// take is what has been gathered for w.
func (a *agents) take(w *watcher) ([]*tailv1.Request, uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	requests, missed := w.waiting, w.missed
	w.waiting, w.missed = nil, 0
	return requests, missed
}

// tailed are the ports of a pod that somebody watches.
func (a *agents) tailed(pod string) []uint32 {
	ports := map[uint32]bool{}
	for w := range a.watchers {
		if _, ok := w.pods[pod]; ok {
			maps.Copy(ports, w.ports)
		}
	}
	return slices.Sorted(maps.Keys(ports))
}

// report takes what an agent has seen. An agent is believed about its own pod only.
func (a *agents) report(pod string, r *agentv1.Report) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for w := range a.watchers {
		name, ok := w.pods[pod]
		if !ok {
			continue
		}
		w.missed += r.Missed
		for _, m := range r.Routed {
			switch {
			case !w.ports[m.Port]:
			case len(w.waiting) >= watcherLimit:
				w.missed++
			default:
				w.waiting = append(w.waiting, a.inWords(pod, name, m))
			}
		}
		select {
		case w.more <- struct{}{}:
		default:
		}
	}
	for uid, n := range r.Dropped {
		if d, ok := a.inForce[uid]; !ok || !d.pods[pod] {
			continue
		}
		if a.dropped[uid] == nil {
			a.dropped[uid] = map[string]uint64{}
		}
		a.dropped[uid][pod] = n
	}
	if len(r.Dropped) > 0 {
		a.notify()
	}
}

// lost is how many copies the laptop of an intercept did not get.
func (a *agents) lost(uid string) (n uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, of := range a.dropped[uid] {
		n += of
	}
	return n
}

// inWords says of a request what those who tail are told.
func (a *agents) inWords(pod, name string, m *agentv1.Routed) *tailv1.Request {
	r := &tailv1.Request{
		At: timestamppb.New(time.UnixMicro(m.AtUnixMicro)), Duration: durationpb.New(time.Duration(m.DurationMicros) * time.Microsecond),
		Pod: name, Port: m.Port, Method: m.Method, Path: m.Path, Status: m.Status, GrpcStatus: m.GrpcStatus,
	}
	switch m.Way {
	case agentv1.Way_WAY_APP:
		r.ServedBy = tailv1.ServedBy_SERVED_BY_CLUSTER
	case agentv1.Way_WAY_LAPTOP:
		r.ServedBy = tailv1.ServedBy_SERVED_BY_LAPTOP
	}
	owner, known := a.inForce[m.InterceptUid]
	if known && owner.pods[pod] {
		r.Laptop = owner.laptop
	}
	r.Why = a.why(pod, m, r.Laptop, owner.match)
	for _, uid := range m.Copied {
		if tap, ok := a.inForce[uid]; ok && tap.pods[pod] {
			r.Why += ", a copy to " + tap.laptop
		}
	}
	return r
}

func (a *agents) why(pod string, m *agentv1.Routed, laptop string, match *agentv1.Match) string {
	switch {
	case m.InterceptUid != "" && laptop == "":
		return "an intercept that has ended since"
	case laptop != "" && m.Way == agentv1.Way_WAY_APP:
		return laptop + "'s laptop is unreachable: fell back"
	case laptop != "" && m.Way != agentv1.Way_WAY_LAPTOP:
		return laptop + "'s laptop is unreachable, and with --on-failure error nobody answers for it"
	case laptop != "" && match == nil:
		return laptop + " intercepts everything"
	case laptop != "":
		conditions := route.ConditionNames(match)
		verb := "match"
		if len(conditions) == 1 {
			verb = "matches"
		}
		return fmt.Sprintf("%s %s %s's intercept", strings.Join(conditions, ", "), verb, laptop)
	}
	for _, d := range a.inForce {
		if !d.wiretap && d.pods[pod] && uint32(d.port) == m.Port {
			if m.Method == "" {
				return "not HTTP: personal intercepts take only that"
			}
			return "no intercept matched"
		}
	}
	return "no intercept"
}
