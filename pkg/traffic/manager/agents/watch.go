package agents

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

// watcherLimit is how many requests are queued for one Watcher. Further ones are only counted.
const watcherLimit = 1024

// Watcher queues the requests that one caller of `detour tail` sees. The Registry's mutex guards
// its fields, except for the channel.
type Watcher struct {
	ports  map[uint32]bool
	pods   map[string]string // UID -> name
	queue  []*tailv1.Request
	missed uint64
	ready  chan struct{}
}

// NewWatcher returns a Watcher that watches nothing yet.
func NewWatcher() *Watcher { return &Watcher{ready: make(chan struct{}, 1)} }

// Ready returns a channel that receives a value when Take has something to return.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// Watch makes agents report the requests to some ports of some pods (UID -> name) and queues them
// for w. Calling it again replaces the ports and pods. The caller calls Unwatch in the end.
func (r *Registry) Watch(w *Watcher, ports map[uint32]bool, pods map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, known := r.watchers[w]; known && maps.Equal(w.ports, ports) && maps.Equal(w.pods, pods) {
		return
	}
	r.watchers[w] = struct{}{}
	w.ports, w.pods = ports, pods
	r.wakeLocked()
}

// Unwatch ends what Watch began.
func (r *Registry) Unwatch(w *Watcher) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.watchers, w)
	r.wakeLocked()
}

// Take empties the queue of w. It returns the requests and how many more there were.
func (r *Registry) Take(w *Watcher) (requests []*tailv1.Request, missed uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	requests, missed = w.queue, w.missed
	w.queue, w.missed = nil, 0
	return requests, missed
}

// tailedLocked returns the watched ports of a pod, sorted.
func (r *Registry) tailedLocked(pod string) []uint32 {
	ports := map[uint32]bool{}
	for w := range r.watchers {
		if _, ok := w.pods[pod]; ok {
			maps.Copy(ports, w.ports)
		}
	}
	return slices.Sorted(maps.Keys(ports))
}

// report records what the agent of a pod saw. An agent is believed about its own pod only.
func (r *Registry) report(pod string, report *agentv1.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.watchers {
		r.queueLocked(w, pod, report)
	}
	for uid, n := range report.Dropped {
		if i, ok := r.active[uid]; !ok || !i.Pods[pod] {
			continue
		}
		if r.dropped[uid] == nil {
			r.dropped[uid] = map[string]uint64{}
		}
		r.dropped[uid][pod] = n
	}
	if len(report.Dropped) > 0 {
		r.notify()
	}
}

func (r *Registry) queueLocked(w *Watcher, pod string, report *agentv1.Report) {
	name, ok := w.pods[pod]
	if !ok {
		return
	}
	w.missed += report.Missed
	for _, m := range report.Routed {
		switch {
		case !w.ports[m.Port]:
		case len(w.queue) >= watcherLimit:
			w.missed++
		default:
			w.queue = append(w.queue, r.describeLocked(pod, name, m))
		}
	}
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// describeLocked converts an agent's report of one request to what `detour tail` prints.
func (r *Registry) describeLocked(pod, name string, m *agentv1.Routed) *tailv1.Request {
	request := &tailv1.Request{
		At:       timestamppb.New(time.UnixMicro(m.AtUnixMicro)),
		Duration: durationpb.New(time.Duration(m.DurationMicros) * time.Microsecond),
		Pod:      name, Port: m.Port, Method: m.Method, Path: m.Path, Status: m.Status, GrpcStatus: m.GrpcStatus,
	}
	switch m.Way {
	case agentv1.Way_WAY_APP:
		request.ServedBy = tailv1.ServedBy_SERVED_BY_CLUSTER
	case agentv1.Way_WAY_LAPTOP:
		request.ServedBy = tailv1.ServedBy_SERVED_BY_LAPTOP
	}
	owner, known := r.active[m.InterceptUid]
	if known && owner.Pods[pod] {
		request.Laptop = owner.Laptop
	}
	request.Why = r.whyLocked(pod, m, request.Laptop, owner.Match)
	for _, uid := range m.Copied {
		if tap, ok := r.active[uid]; ok && tap.Pods[pod] {
			request.Why += ", copied to " + tap.Laptop
		}
	}
	return request
}

// whyLocked explains to the user why a request went where it went.
func (r *Registry) whyLocked(pod string, m *agentv1.Routed, laptop string, match *agentv1.Match) string {
	switch {
	case m.InterceptUid != "" && laptop == "":
		return "matched an intercept that has ended since"
	case laptop != "" && m.Way == agentv1.Way_WAY_APP:
		return laptop + "'s laptop is unreachable: fell back"
	case laptop != "" && m.Way != agentv1.Way_WAY_LAPTOP:
		return laptop + "'s laptop is unreachable, and --on-failure error keeps the app from answering"
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
	return r.whyUnmatchedLocked(pod, m)
}

// whyUnmatchedLocked explains why a request is part of no intercept.
func (r *Registry) whyUnmatchedLocked(pod string, m *agentv1.Routed) string {
	for _, i := range r.active {
		if !i.Wiretap && i.Pods[pod] && uint32(i.Port) == m.Port {
			if m.Method == "" {
				return "not HTTP: personal intercepts apply to HTTP requests only"
			}
			return "no intercept matched"
		}
	}
	return "no intercept"
}
