package agents

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

func newRegistry() *Registry {
	return New(Config{RelayAddress: "[fd00::1]:8083", Log: slog.New(slog.DiscardHandler)})
}

// connectAgent registers an agent as Connect does.
func connectAgent(r *Registry, pod string) *agent {
	a := &agent{pod: pod, serves: []uint32{8080, 9090}, wake: make(chan struct{}, 1), tokens: map[string][]byte{}}
	r.connected[a] = struct{}{}
	return a
}

func onPods(pods ...string) ActiveIntercept {
	i := ActiveIntercept{Port: 8080, Address: "100.64.0.2", Pods: map[string]bool{}}
	for _, p := range pods {
		i.Pods[p] = true
	}
	return i
}

// The reconciler activates the same intercept again and again: only a change may wake the agents.
func TestOnlyChangesWakeAgents(t *testing.T) {
	otherLaptop := onPods("pod-1")
	otherLaptop.Address = "100.64.0.3"
	otherPort := onPods("pod-1")
	otherPort.Port = 9090
	plaintext := onPods("pod-1")
	plaintext.LocalPlaintext = true
	for name, c := range map[string]struct {
		next ActiveIntercept
		want bool
	}{
		"the same intercept":  {next: onPods("pod-1"), want: false},
		"one more pod":        {next: onPods("pod-1", "pod-2"), want: true},
		"another pod instead": {next: onPods("pod-2"), want: true},
		"another laptop":      {next: otherLaptop, want: true},
		"another port":        {next: otherPort, want: true},
		"without local TLS":   {next: plaintext, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRegistry()
			r.Activate("intercept-1", onPods("pod-1"))
			a := connectAgent(r, "pod-1")
			before := r.generation
			r.Activate("intercept-1", c.next)
			assert.Equal(t, c.want, len(a.wake) == 1)
			assert.Equal(t, c.want, r.generation > before)
		})
	}
	t.Run("the end of an intercept", func(t *testing.T) {
		r := newRegistry()
		r.Activate("intercept-1", onPods("pod-1"))
		a := connectAgent(r, "pod-1")
		before := r.generation
		r.Deactivate("intercept-1")
		assert.Len(t, a.wake, 1)
		assert.Greater(t, r.generation, before)
	})
	t.Run("the end of an unknown intercept", func(t *testing.T) {
		r := newRegistry()
		r.Deactivate("intercept-1")
		assert.Zero(t, r.generation)
	})
}

func TestRetainDeactivatesDeletedIntercepts(t *testing.T) {
	r := newRegistry()
	r.Activate("alive", onPods("pod-1"))
	r.Activate("deleted", onPods("pod-1"))
	r.Retain(map[string]bool{"alive": true})
	assert.NotNil(t, r.Active("alive"))
	assert.Nil(t, r.Active("deleted"))
}

// Traffic is reported as flowing only if it is: the agent has to apply the newest generation first.
func TestAgentConfirmsByNewestGeneration(t *testing.T) {
	r := newRegistry()
	assert.False(t, r.Confirmed("pod-1", 8080), "there is no agent")
	a := connectAgent(r, "pod-1")
	r.Activate("intercept-1", onPods("pod-1"))
	assert.False(t, r.Confirmed("pod-1", 8080), "the agent does not know the intercept yet")
	r.recordApplied(a, &agentv1.Applied{Generation: r.configFor(a).Generation})
	assert.True(t, r.Confirmed("pod-1", 8080))
	r.Deactivate("intercept-1")
	assert.False(t, r.Confirmed("pod-1", 8080), "the agent does not know yet that the intercept has ended")
}

// An agent's configuration has the intercepts of its pod only, each with a token of its own that
// stays the same from one configuration to the next.
func TestConfigurationOfAnAgent(t *testing.T) {
	r := newRegistry()
	one, two := connectAgent(r, "pod-1"), connectAgent(r, "pod-2")
	r.Activate("both", onPods("pod-1", "pod-2"))
	r.Activate("second", onPods("pod-2"))

	first := r.configFor(one)
	require.Len(t, first.Intercepts, 1)
	i := first.Intercepts[0]
	assert.Equal(t, "both", i.Uid)
	assert.Equal(t, uint32(8080), i.Port)
	assert.Equal(t, "[fd00::1]:8083", i.RelayAddress)
	assert.Len(t, i.Token, 32)
	assert.Equal(t, i.Token, r.configFor(one).Intercepts[0].Token)

	byUID := map[string]*agentv1.Intercept{}
	for _, i := range r.configFor(two).Intercepts {
		byUID[i.Uid] = i
	}
	require.Len(t, byUID, 2)
	assert.NotEqual(t, i.Token, byUID["both"].Token)
	assert.NotEqual(t, byUID["second"].Token, byUID["both"].Token)
}

// A token opens relay connections for the intercept that it was issued for, as long as that
// intercept is active and the agent is connected.
func TestRelayTarget(t *testing.T) {
	r := newRegistry()
	a := connectAgent(r, "pod-1")
	r.Activate("one", onPods("pod-1"))
	r.Activate("two", onPods("pod-1"))
	r.Activate("unknown to agents", onPods("pod-9"))
	tokens := map[string][]byte{}
	for _, i := range r.configFor(a).Intercepts {
		tokens[i.Uid] = i.Token
	}
	address, ok := r.RelayTarget("one", tokens["one"])
	assert.True(t, ok)
	assert.Equal(t, "100.64.0.2", address)
	for name, c := range map[string]struct {
		uid   string
		token []byte
	}{
		"token of another intercept":         {uid: "one", token: tokens["two"]},
		"truncated token":                    {uid: "one", token: tokens["one"][:31]},
		"no token":                           {uid: "one"},
		"unknown intercept":                  {uid: "three", token: tokens["one"]},
		"no token where none has been given": {uid: "unknown to agents"},
	} {
		t.Run(name, func(t *testing.T) {
			_, ok := r.RelayTarget(c.uid, c.token)
			assert.False(t, ok)
		})
	}
	r.Deactivate("one")
	_, ok = r.RelayTarget("one", tokens["one"])
	assert.False(t, ok, "the intercept has ended")
	delete(r.connected, a)
	_, ok = r.RelayTarget("two", tokens["two"])
	assert.False(t, ok, "the agent has disconnected")
}

// A pod may have a sidecar for one port and an attached agent for another. Each gets the intercepts
// of its own port and confirms only those.
func TestTwoAgentsInOnePod(t *testing.T) {
	r := newRegistry()
	one, two := connectAgent(r, "pod-1"), connectAgent(r, "pod-1")
	one.serves, two.serves = []uint32{8080}, []uint32{9090}
	other := onPods("pod-1")
	other.Port = 9090
	r.Activate("one", onPods("pod-1"))
	r.Activate("two", other)
	for a, uid := range map[*agent]string{one: "one", two: "two"} {
		config := r.configFor(a)
		require.Len(t, config.Intercepts, 1)
		assert.Equal(t, uid, config.Intercepts[0].Uid)
	}
	one.applied = r.generation
	assert.True(t, r.Confirmed("pod-1", 8080))
	assert.False(t, r.Confirmed("pod-1", 9090), "the other agent has not applied it")
	delete(r.connected, one)
	assert.False(t, r.Confirmed("pod-1", 8080), "the agent has disconnected")
}
