package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// connectAgent is what Connect does to remember an agent.
func connectAgent(a *agents, pod string) *agentState {
	s := &agentState{pod: pod, serves: []uint32{8080, 9090}, wake: make(chan struct{}, 1), tokens: map[string][]byte{}}
	a.connected[s] = struct{}{}
	return s
}

func onPods(pods ...string) *desired {
	d := &desired{port: 8080, address: "100.64.0.2", pods: map[string]bool{}}
	for _, p := range pods {
		d.pods[p] = true
	}
	return d
}

// Agents are woken by what changes, and by nothing else: the reconciler says the same again all the time.
func TestWhatWakesAgents(t *testing.T) {
	moved := onPods("pod-1")
	moved.address = "100.64.0.3"
	otherPort := onPods("pod-1")
	otherPort.port = 9090
	for name, c := range map[string]struct {
		next *desired
		want bool
	}{
		"the same":          {onPods("pod-1"), false},
		"another pod":       {onPods("pod-1", "pod-2"), true},
		"a pod for another": {onPods("pod-2"), true},
		"another laptop":    {moved, true},
		"another port":      {otherPort, true},
		"the end":           {nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAgents(nil, nil, Options{})
			a.set("intercept-1", onPods("pod-1"))
			s := connectAgent(a, "pod-1")
			before := a.generation
			a.set("intercept-1", c.next)
			assert.Equal(t, c.want, len(s.wake) == 1)
			assert.Equal(t, c.want, a.generation > before)
		})
	}
	t.Run("the end of what never was", func(t *testing.T) {
		a := newAgents(nil, nil, Options{})
		a.set("intercept-1", nil)
		assert.Zero(t, a.generation)
	})
}

// An agent has confirmed when it has applied the newest generation, so that traffic is said to flow only when it does.
func TestConfirmed(t *testing.T) {
	a := newAgents(nil, nil, Options{})
	assert.False(t, a.confirmed("pod-1", 8080), "no such agent")
	s := connectAgent(a, "pod-1")
	a.set("intercept-1", onPods("pod-1"))
	assert.False(t, a.confirmed("pod-1", 8080), "it has not heard of it")
	s.applied = a.configOf(s).Generation
	assert.True(t, a.confirmed("pod-1", 8080))
	a.set("intercept-1", nil)
	assert.False(t, a.confirmed("pod-1", 8080), "it has not heard of the end")
}

// Each agent is told of its own intercepts only, each with a token of its own that stays the same from one configuration to the next.
func TestConfigOf(t *testing.T) {
	a := newAgents(nil, nil, Options{PodIP: "fd00::1"})
	one, two := connectAgent(a, "pod-1"), connectAgent(a, "pod-2")
	a.set("both", onPods("pod-1", "pod-2"))
	a.set("second", onPods("pod-2"))

	first := a.configOf(one)
	require.Len(t, first.Intercepts, 1)
	i := first.Intercepts[0]
	assert.Equal(t, "both", i.Uid)
	assert.Equal(t, uint32(8080), i.Port)
	assert.Equal(t, "[fd00::1]:8083", i.RelayAddress)
	assert.Len(t, i.Token, 32)
	assert.Equal(t, i.Token, a.configOf(one).Intercepts[0].Token)

	byUID := map[string]*agentv1.Intercept{}
	for _, i := range a.configOf(two).Intercepts {
		byUID[i.Uid] = i
	}
	require.Len(t, byUID, 2)
	assert.NotEqual(t, i.Token, byUID["both"].Token)
	assert.NotEqual(t, byUID["second"].Token, byUID["both"].Token)
}

// A token opens the intercept that it was given for, as long as that is in force and its agent connected.
func TestRelayTarget(t *testing.T) {
	a := newAgents(nil, nil, Options{})
	s := connectAgent(a, "pod-1")
	a.set("one", onPods("pod-1"))
	a.set("two", onPods("pod-1"))
	a.set("unknown to agents", onPods("pod-9"))
	tokens := map[string][]byte{}
	for _, i := range a.configOf(s).Intercepts {
		tokens[i.Uid] = i.Token
	}
	address, ok := a.relayTarget("one", tokens["one"])
	assert.True(t, ok)
	assert.Equal(t, "100.64.0.2", address)
	for name, c := range map[string]struct {
		uid   string
		token []byte
	}{
		"of another intercept":            {"one", tokens["two"]},
		"cut short":                       {"one", tokens["one"][:31]},
		"none":                            {"one", nil},
		"for nothing":                     {"three", tokens["one"]},
		"none, where none has been given": {"unknown to agents", nil},
	} {
		t.Run(name, func(t *testing.T) {
			_, ok := a.relayTarget(c.uid, c.token)
			assert.False(t, ok)
		})
	}
	a.set("one", nil)
	_, ok = a.relayTarget("one", tokens["one"])
	assert.False(t, ok, "the intercept has ended")
	delete(a.connected, s)
	_, ok = a.relayTarget("two", tokens["two"])
	assert.False(t, ok, "the agent is gone")
}

// A pod may have a sidecar for one port and an agent that was attached for another: each hears of its own, and speaks for its own.
func TestTwoAgentsInAPod(t *testing.T) {
	a := newAgents(nil, nil, Options{})
	one, two := connectAgent(a, "pod-1"), connectAgent(a, "pod-1")
	one.serves, two.serves = []uint32{8080}, []uint32{9090}
	other := onPods("pod-1")
	other.port = 9090
	a.set("one", onPods("pod-1"))
	a.set("two", other)
	for s, uid := range map[*agentState]string{one: "one", two: "two"} {
		config := a.configOf(s)
		require.Len(t, config.Intercepts, 1)
		assert.Equal(t, uid, config.Intercepts[0].Uid)
	}
	one.applied = a.generation
	assert.True(t, a.confirmed("pod-1", 8080))
	assert.False(t, a.confirmed("pod-1", 9090), "the other has not heard of it")
	delete(a.connected, one)
	assert.False(t, a.confirmed("pod-1", 8080), "it is gone")
}
