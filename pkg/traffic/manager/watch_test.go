package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

func routedOn(port uint32) *agentv1.Report {
	return &agentv1.Report{Routed: []*agentv1.Routed{{Port: port, Method: "GET", Path: "/", Way: agentv1.Way_WAY_APP}}}
}

// Agents look at requests for as long as somebody watches their pods, and tell nobody else.
func TestWatch(t *testing.T) {
	a := newAgents(nil, nil, Options{})
	one, two := connectAgent(a, "pod-1"), connectAgent(a, "pod-2")
	generation := a.generation
	w := &watcher{more: make(chan struct{}, 1)}
	a.watch(w, map[uint32]bool{8080: true}, map[string]string{"pod-1": "catalog-1"})
	require.Len(t, one.wake, 1)
	assert.Equal(t, []uint32{8080}, a.configOf(one).Tailed)
	assert.Empty(t, a.configOf(two).Tailed)
	assert.Equal(t, generation, a.generation, "nothing that has to be confirmed")

	<-one.wake
	a.watch(w, map[uint32]bool{8080: true}, map[string]string{"pod-1": "catalog-1"})
	assert.Empty(t, one.wake, "nothing new")

	a.report("pod-2", routedOn(8080))
	a.report("pod-1", routedOn(9090))
	requests, missed := a.take(w)
	assert.Empty(t, requests)
	assert.Zero(t, missed)
	a.report("pod-1", routedOn(8080))
	<-w.more
	requests, _ = a.take(w)
	require.Len(t, requests, 1)
	assert.Equal(t, "catalog-1", requests[0].Pod)

	for range watcherLimit + 3 {
		a.report("pod-1", routedOn(8080))
	}
	a.report("pod-1", &agentv1.Report{Missed: 4})
	requests, missed = a.take(w)
	assert.Len(t, requests, watcherLimit)
	assert.Equal(t, uint64(7), missed)

	a.unwatch(w)
	require.Len(t, one.wake, 1)
	assert.Empty(t, a.configOf(one).Tailed)
	a.report("pod-1", routedOn(8080))
	requests, _ = a.take(w)
	assert.Empty(t, requests)
}

func TestWhyARequestWentThere(t *testing.T) {
	app, laptop, nobody := agentv1.Way_WAY_APP, agentv1.Way_WAY_LAPTOP, agentv1.Way_WAY_UNSPECIFIED
	for name, c := range map[string]struct {
		m        *agentv1.Routed
		servedBy tailv1.ServedBy
		want     string
	}{
		"personal":             {&agentv1.Routed{Port: 8080, Method: "GET", Way: laptop, InterceptUid: "alice"}, tailv1.ServedBy_SERVED_BY_LAPTOP, "header x-dev matches alice@mac's intercept"},
		"several conditions":   {&agentv1.Routed{Port: 8080, Method: "GET", Way: laptop, InterceptUid: "bob"}, tailv1.ServedBy_SERVED_BY_LAPTOP, "query token, path, method match bob@mac's intercept"},
		"global":               {&agentv1.Routed{Port: 9090, Method: "GET", Way: laptop, InterceptUid: "eve"}, tailv1.ServedBy_SERVED_BY_LAPTOP, "eve@mac intercepts everything"},
		"nobody's":             {&agentv1.Routed{Port: 8080, Method: "GET", Way: app}, tailv1.ServedBy_SERVED_BY_CLUSTER, "no intercept matched"},
		"copied":               {&agentv1.Routed{Port: 8080, Method: "GET", Way: app, Copied: []string{"carol", "gone"}}, tailv1.ServedBy_SERVED_BY_CLUSTER, "no intercept matched, a copy to carol@mac"},
		"not HTTP":             {&agentv1.Routed{Port: 8080, Way: app}, tailv1.ServedBy_SERVED_BY_CLUSTER, "not HTTP: personal intercepts take only that"},
		"on a port of nobody":  {&agentv1.Routed{Port: 7070, Method: "GET", Way: app}, tailv1.ServedBy_SERVED_BY_CLUSTER, "no intercept"},
		"unreachable":          {&agentv1.Routed{Port: 8080, Method: "GET", Way: app, InterceptUid: "alice"}, tailv1.ServedBy_SERVED_BY_CLUSTER, "alice@mac's laptop is unreachable: fell back"},
		"an error":             {&agentv1.Routed{Port: 8080, Method: "GET", Way: nobody, InterceptUid: "alice"}, tailv1.ServedBy_SERVED_BY_UNSPECIFIED, "alice@mac's laptop is unreachable, and with --on-failure error nobody answers for it"},
		"ended":                {&agentv1.Routed{Port: 8080, Method: "GET", Way: laptop, InterceptUid: "gone"}, tailv1.ServedBy_SERVED_BY_LAPTOP, "an intercept that has ended since"},
		"of another pod's own": {&agentv1.Routed{Port: 8080, Method: "GET", Way: laptop, InterceptUid: "elsewhere"}, tailv1.ServedBy_SERVED_BY_LAPTOP, "an intercept that has ended since"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgents(nil, nil, Options{})
			put := func(uid, pod string, port int32, match *agentv1.Match, wiretap bool) {
				a.set(uid, &desired{port: port, pods: map[string]bool{pod: true}, match: match, wiretap: wiretap, laptop: uid + "@mac"})
			}
			put("alice", "pod-1", 8080, &agentv1.Match{Headers: []*agentv1.ValueMatch{{Name: "x-dev", Value: "secret"}}}, false)
			put("bob", "pod-1", 8080, &agentv1.Match{Query: []*agentv1.ValueMatch{{Name: "token", Value: "secret"}}, Path: "/secret", Methods: []string{"GET"}}, false)
			put("eve", "pod-1", 9090, nil, false)
			put("carol", "pod-1", 7070, nil, true)
			put("elsewhere", "pod-2", 8080, nil, false)
			r := a.inWords("pod-1", "catalog-1", c.m)
			assert.Equal(t, c.want, r.Why)
			assert.Equal(t, c.servedBy, r.ServedBy)
		})
	}
}

// Copies that are dropped add up over pods, whatever an agent says twice or of others' intercepts.
func TestLostCopies(t *testing.T) {
	a := newAgents(nil, nil, Options{})
	notified := 0
	a.notify = func() { notified++ }
	a.set("tap", onPods("pod-1", "pod-2"))
	for _, r := range []struct {
		pod   string
		count uint64
	}{{"pod-1", 3}, {"pod-2", 4}, {"pod-1", 5}, {"pod-3", 100}} {
		a.report(r.pod, &agentv1.Report{Dropped: map[string]uint64{"tap": r.count, "none": 1}})
	}
	assert.Equal(t, uint64(9), a.lost("tap"))
	assert.Equal(t, 4, notified)
	a.set("tap", nil)
	assert.Zero(t, a.lost("tap"))
	assert.Zero(t, a.lost("none"))
}
