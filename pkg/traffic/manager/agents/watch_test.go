package agents

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

func routedOn(port uint32) *agentv1.Report {
	return &agentv1.Report{Routed: []*agentv1.Routed{
		{Port: port, Method: "GET", Path: "/", Way: agentv1.Way_WAY_APP},
	}}
}

// Agents report requests only while somebody watches their pods, and only that watcher gets them.
func TestWatch(t *testing.T) {
	r := newRegistry()
	one, two := connectAgent(r, "pod-1"), connectAgent(r, "pod-2")
	generation := r.generation
	w := NewWatcher()
	r.Watch(w, map[uint32]bool{8080: true}, map[string]string{"pod-1": "catalog-1"})
	require.Len(t, one.wake, 1)
	assert.Equal(t, []uint32{8080}, r.configFor(one).Tailed)
	assert.Empty(t, r.configFor(two).Tailed)
	assert.Equal(t, generation, r.generation, "no agent has to confirm that it is watched")

	<-one.wake
	r.Watch(w, map[uint32]bool{8080: true}, map[string]string{"pod-1": "catalog-1"})
	assert.Empty(t, one.wake, "nothing has changed")

	r.report("pod-2", routedOn(8080))
	r.report("pod-1", routedOn(9090))
	requests, missed := r.Take(w)
	assert.Empty(t, requests)
	assert.Zero(t, missed)
	r.report("pod-1", routedOn(8080))
	<-w.Ready()
	requests, _ = r.Take(w)
	require.Len(t, requests, 1)
	assert.Equal(t, "catalog-1", requests[0].Pod)

	for range watcherLimit + 3 {
		r.report("pod-1", routedOn(8080))
	}
	r.report("pod-1", &agentv1.Report{Missed: 4})
	requests, missed = r.Take(w)
	assert.Len(t, requests, watcherLimit)
	assert.Equal(t, uint64(7), missed)

	r.Unwatch(w)
	require.Len(t, one.wake, 1)
	assert.Empty(t, r.configFor(one).Tailed)
	r.report("pod-1", routedOn(8080))
	requests, _ = r.Take(w)
	assert.Empty(t, requests)
}

func TestWhyARequestWentWhereItWent(t *testing.T) {
	app, laptop, nowhere := agentv1.Way_WAY_APP, agentv1.Way_WAY_LAPTOP, agentv1.Way_WAY_UNSPECIFIED
	byCluster, byLaptop := tailv1.ServedBy_SERVED_BY_CLUSTER, tailv1.ServedBy_SERVED_BY_LAPTOP
	for name, c := range map[string]struct {
		routed   *agentv1.Routed
		servedBy tailv1.ServedBy
		want     string
	}{
		"personal intercept": {
			routed:   &agentv1.Routed{Port: 8080, Method: "GET", Way: laptop, InterceptUid: "alice"},
			servedBy: byLaptop, want: "header x-dev matches alice@mac's intercept",
		},
		"several conditions": {
			routed:   &agentv1.Routed{Port: 8080, Method: "GET", Way: laptop, InterceptUid: "bob"},
			servedBy: byLaptop, want: "query token, path, method match bob@mac's intercept",
		},
		"global intercept": {
			routed:   &agentv1.Routed{Port: 9090, Method: "GET", Way: laptop, InterceptUid: "eve"},
			servedBy: byLaptop, want: "eve@mac intercepts everything",
		},
		"no match": {
			routed:   &agentv1.Routed{Port: 8080, Method: "GET", Way: app},
			servedBy: byCluster, want: "no intercept matched",
		},
		"copied by a wiretap": {
			routed:   &agentv1.Routed{Port: 8080, Method: "GET", Way: app, Copied: []string{"carol", "gone"}},
			servedBy: byCluster, want: "no intercept matched, copied to carol@mac",
		},
		"not HTTP": {
			routed:   &agentv1.Routed{Port: 8080, Way: app},
			servedBy: byCluster, want: "not HTTP: personal intercepts apply to HTTP requests only",
		},
		"a port without intercepts": {
			routed:   &agentv1.Routed{Port: 7070, Method: "GET", Way: app},
			servedBy: byCluster, want: "no intercept",
		},
		"unreachable laptop": {
			routed:   &agentv1.Routed{Port: 8080, Method: "GET", Way: app, InterceptUid: "alice"},
			servedBy: byCluster, want: "alice@mac's laptop is unreachable: fell back",
		},
		"unreachable laptop, with an error": {
			routed:   &agentv1.Routed{Port: 8080, Method: "GET", Way: nowhere, InterceptUid: "alice"},
			servedBy: tailv1.ServedBy_SERVED_BY_UNSPECIFIED,
			want:     "alice@mac's laptop is unreachable, and --on-failure error keeps the app from answering",
		},
		"ended intercept": {
			routed:   &agentv1.Routed{Port: 8080, Method: "GET", Way: laptop, InterceptUid: "gone"},
			servedBy: byLaptop, want: "matched an intercept that has ended since",
		},
		"intercept of another pod": {
			routed:   &agentv1.Routed{Port: 8080, Method: "GET", Way: laptop, InterceptUid: "elsewhere"},
			servedBy: byLaptop, want: "matched an intercept that has ended since",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry()
			activate := func(uid, pod string, port int32, match *agentv1.Match, wiretap bool) {
				r.Activate(uid, ActiveIntercept{
					Port: port, Pods: map[string]bool{pod: true}, Match: match, Wiretap: wiretap, Laptop: uid + "@mac",
				})
			}
			activate("alice", "pod-1", 8080,
				&agentv1.Match{Headers: []*agentv1.ValueMatch{{Name: "x-dev", Value: "secret"}}}, false)
			activate("bob", "pod-1", 8080, &agentv1.Match{
				Query: []*agentv1.ValueMatch{{Name: "token", Value: "secret"}}, Path: "/secret",
				Methods: []string{"GET"},
			}, false)
			activate("eve", "pod-1", 9090, nil, false)
			activate("carol", "pod-1", 7070, nil, true)
			activate("elsewhere", "pod-2", 8080, nil, false)
			got := r.describeLocked("pod-1", "catalog-1", c.routed)
			assert.Equal(t, c.want, got.Why)
			assert.Equal(t, c.servedBy, got.ServedBy)
		})
	}
}

// An agent reports its whole count each time. The counts of several pods add up, and an agent
// cannot count for an intercept that does not apply to its pod.
func TestDroppedCopies(t *testing.T) {
	r := newRegistry()
	notified := 0
	r.Notify(func() { notified++ })
	r.Activate("tap", onPods("pod-1", "pod-2"))
	for _, report := range []struct {
		pod   string
		count uint64
	}{
		{pod: "pod-1", count: 3}, {pod: "pod-2", count: 4}, {pod: "pod-1", count: 5}, {pod: "pod-3", count: 100},
	} {
		r.report(report.pod, &agentv1.Report{Dropped: map[string]uint64{"tap": report.count, "none": 1}})
	}
	assert.Equal(t, uint64(9), r.DroppedCopies("tap"))
	assert.Equal(t, 4, notified)
	r.Deactivate("tap")
	assert.Zero(t, r.DroppedCopies("tap"))
	assert.Zero(t, r.DroppedCopies("none"))
}
