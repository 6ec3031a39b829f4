package suite

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// catalogPods says what must not change of pods to which an agent is attached.
func catalogPods(t *testing.T) string {
	t.Helper()
	return kubectl(t, "-n", "shop", "get", "pods", "-l", "app=catalog", "--sort-by=.metadata.name", "-o",
		`jsonpath={range .items[*]}{.metadata.uid} {.status.startTime} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].state.running.startedAt} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
}

// attachedAgents are the processes of agents in ephemeral containers, where the nodes are this machine.
func attachedAgents(t *testing.T) []int {
	t.Helper()
	var pids []int
	for _, pid := range processes(t, "/traffic-agent", "agent") {
		environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && bytes.Contains(environment, []byte(`"attached":`)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// attachedEnd waits until no attached agent runs: they end by themselves. Meanwhile it does something again and again.
func attachedEnd(t *testing.T, meanwhile func()) {
	t.Helper()
	require.Eventually(t, func() bool {
		meanwhile()
		states := kubectl(t, "-n", "shop", "get", "pods", "-o", "jsonpath={.items[*].status.ephemeralContainerStatuses[*].state.running}")
		return states == "" && len(attachedAgents(t)) == 0
	}, 2*time.Minute, 500*time.Millisecond, "the attached agents end")
}

// The agent is put into running pods and nothing of them is restarted. The kubelet's probes go on to reach the app, and pods that come later
// are attached to as well.
func TestAttach(t *testing.T) {
	withoutAgent(t, "catalog")
	connected(t)
	var probes atomic.Int64
	port := laptopServer(t, "0", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			probes.Add(1)
			http.Error(w, "the laptop is not what is probed", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, `{"edition":"laptop"}`)
	})
	before := catalogPods(t)
	end := load(t, "http://catalog.shop/", false)

	require.Contains(t, detour(t, "intercept", "catalog", "--port", port, "--attach"), "by attach, agents 3/3")
	for range 20 {
		require.Equal(t, "laptop", edition(t, "http://catalog.shop/"))
	}
	require.Regexp(t, `catalog +80/http +deployment/catalog +yes, by attach `, detour(t, "list", "-n", "shop"))
	require.Equal(t, before, catalogPods(t), "nothing was restarted")

	t.Run("a pod that is new", func(t *testing.T) {
		kubectl(t, "-n", "shop", "scale", "deployment/catalog", "--replicas=4")
		t.Cleanup(func() {
			kubectl(t, "-n", "shop", "scale", "deployment/catalog", "--replicas=3")
			require.Eventually(t, func() bool { return len(running(t, "catalog")) == 3 }, time.Minute, 200*time.Millisecond)
		})
		require.Eventually(t, func() bool { return strings.Contains(kubectl(t, "-n", "shop", "get", "intercepts"), "4/4") }, time.Minute, 200*time.Millisecond)
		for range 20 {
			require.Equal(t, "laptop", edition(t, "http://catalog.shop/"))
		}
	})
	n, failures := end()
	require.Empty(t, failures)
	require.Greater(t, n, 100)

	t.Run("an agent that is killed", func(t *testing.T) {
		agents := attachedAgents(t)
		if len(agents) == 0 {
			t.Skip("the nodes are not this machine")
		}
		for _, pid := range agents {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
		// A process is gone when the kernel has closed its sockets, and with the one for netlink has taken the redirection away.
		for _, pid := range agents {
			require.Eventually(t, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH }, time.Minute, time.Millisecond)
		}
		require.Eventually(t, func() bool {
			return len(attachedAgents(t)) == len(agents) && edition(t, "http://catalog.shop/") == "laptop"
		}, time.Minute, 50*time.Millisecond, "agents are attached again, and no request fails")
	})

	detour(t, "leave", "catalog")
	for range 20 {
		require.Equal(t, "cluster", edition(t, "http://catalog.shop/"))
	}
	require.Zero(t, probes.Load(), "the kubelet's probes are the app's")
	require.NotContains(t, catalogPods(t), "False", "all pods are ready")
}

// A laptop that vanishes, and one that leaves and comes again: nobody else's request fails, and none of the pods is restarted.
func TestAttachAgain(t *testing.T) {
	withoutAgent(t, "catalog")
	alice := newDeveloper(t, "alice")
	client := outside(t, "catalog")
	before := catalogPods(t)
	alice.detour("connect", "-n", "shop")
	w := watchWith(t, client, "")
	one := &http.Client{Transport: client(0)}
	answers := func(who string) func() bool {
		return func() bool { got, err := askAs(one, "alice"); return err == nil && got == who }
	}
	attach := func() {
		require.Contains(t, alice.detour("intercept", "catalog", "--port", "18080", "--header", "x-dev=alice", "--attach", "-n", "shop"), "by attach, agents 3/3")
		require.Eventually(t, answers("alice"), patience, 50*time.Millisecond)
	}
	kept := &http.Client{Transport: client(1)}
	nobody := func() {
		got, err := askAs(kept, "")
		require.NoError(t, err)
		require.Equal(t, "cluster", got)
	}
	leave := func() {
		alice.detour("leave", "catalog")
		require.Eventually(t, answers("cluster"), patience, 50*time.Millisecond)
	}

	attach()
	nobody() // on a connection that leads to the agent from now on
	pid := alice.daemonPID()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	require.Eventually(t, answers("cluster"), patience, 50*time.Millisecond, "the app answers for a laptop that is silent")
	require.Eventually(t, func() bool { return strings.Contains(kubectl(t, "-n", "shop", "get", "intercepts"), "LaptopGone") }, 30*time.Second, 200*time.Millisecond)
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	require.Eventually(t, answers("alice"), 30*time.Second, 50*time.Millisecond, "the laptop is taken up again")
	leave()
	attach() // while the agents still wait for that
	leave()
	attachedEnd(t, nobody) // although a client keeps its connection: it is asked to open another
	attach()
	leave()
	require.Equal(t, before, catalogPods(t), "nothing was restarted")

	for _, a := range w.ended() {
		require.Equal(t, "cluster", a.got)
	}
	require.Greater(t, len(w.answers), 100)
}

func TestAttachRefused(t *testing.T) {
	connected(t)
	file := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/tokenless.yaml")
	kubectl(t, "apply", "-f", file)
	t.Cleanup(func() { kubectl(t, "delete", "-f", file) })
	kubectl(t, "-n", "shop", "rollout", "status", "deployment/tokenless", "--timeout=120s")
	require.Contains(t, refused(t, "intercept", "tokenless", "--port", "18080:http", "--attach"), "has no service account token")
	require.Contains(t, refused(t, "intercept", "tokenless", "--port", "18080:datagrams", "--attach"), "is a UDP port, and an attached agent can take over TCP ports only: leave out --attach")

	kubectl(t, "label", "namespace", "shop", "pod-security.kubernetes.io/enforce=baseline")
	t.Cleanup(func() { kubectl(t, "label", "namespace", "shop", "pod-security.kubernetes.io/enforce-") })
	withoutAgent(t, "frontend")
	require.Contains(t, refused(t, "intercept", "frontend", "--port", "18080", "--attach"), "the cluster does not let the agent be attached")
}
