package suite

import (
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// catalogPods returns everything of the catalog's pods that must not change when an agent is
// attached to them.
func catalogPods(t *testing.T) string {
	t.Helper()
	return kit.Query(t, "shop", "pods -l app=catalog --sort-by=.metadata.name",
		`{range .items[*]}{.metadata.uid} {.status.startTime} {.status.containerStatuses[*].containerID} {.status.containerStatuses[*].state.running.startedAt} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
}

// The agent is attached to running pods, and nothing of them is restarted. The kubelet's probes
// still reach the app, and agents are attached to new pods as well.
func TestAttach(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog), kit.Uses(kit.Machine))
	kit.RemoveAgent(t, "catalog")
	kit.Connect(t)
	var probes atomic.Int64
	port := kit.Serve(t, "0", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/healthz" {
			probes.Add(1)
			http.Error(w, "the laptop is not what is probed", http.StatusInternalServerError)
			return
		}
		fmt.Fprint(w, `{"edition":"laptop"}`)
	})
	before := catalogPods(t)
	end := kit.Load(t, "http://catalog.shop/", false)

	require.Contains(t, kit.Detour(t, "intercept", "catalog", "--port", port, "--attach"), "by attach, agents 3/3")
	for range 20 {
		require.Equal(t, "laptop", kit.Edition(t, "http://catalog.shop/"))
	}
	require.Regexp(t, `catalog +80/http +deployment/catalog +yes, by attach `, kit.Detour(t, "list", "-n", "shop"))
	require.Equal(t, before, catalogPods(t), "nothing was restarted")

	t.Run("a pod that is new", func(t *testing.T) {
		kit.Kubectl(t, "-n", "shop", "scale", "deployment/catalog", "--replicas=4")
		t.Cleanup(func() {
			kit.Kubectl(t, "-n", "shop", "scale", "deployment/catalog", "--replicas=3")
			kit.Eventually(t, func() bool { return len(kit.RunningPods(t, "catalog")) == 3 })
		})
		kit.Eventually(t, func() bool {
			return strings.Contains(kit.Kubectl(t, "-n", "shop", "get", "intercepts"),
				"4/4")
		})
		for range 20 {
			require.Equal(t, "laptop", kit.Edition(t, "http://catalog.shop/"))
		}
	})
	n, failures := end()
	require.Empty(t, failures)
	require.Greater(t, n, 100)

	t.Run("an agent that is killed", func(t *testing.T) {
		agents := kit.AttachedAgents(t)
		if len(agents) == 0 {
			t.Skip("the nodes are not this machine")
		}
		for _, pid := range agents {
			require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		}
		// A process is gone when the kernel has closed its sockets. With the netlink socket the
		// redirection goes too.
		for _, pid := range agents {
			kit.Eventually(t, func() bool { return syscall.Kill(pid, 0) == syscall.ESRCH })
		}
		kit.Eventually(t, func() bool {
			return len(kit.AttachedAgents(t)) == len(agents) && kit.Edition(t, "http://catalog.shop/") == "laptop"
		}, "agents are attached again, and no request fails")
	})

	kit.Detour(t, "leave", "catalog")
	for range 20 {
		require.Equal(t, "cluster", kit.Edition(t, "http://catalog.shop/"))
	}
	require.Zero(t, probes.Load(), "the kubelet's probes are the app's")
	require.NotContains(t, catalogPods(t), "False", "all pods are ready")
}

// A laptop vanishes, or leaves and comes again. No request of anybody else fails, and no pod is
// restarted.
func TestAttachAgain(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog))
	kit.RemoveAgent(t, "catalog")
	alice := kit.NewCatalogLaptop(t, "alice")
	client := kit.NodeTransports(t, "catalog")
	before := catalogPods(t)
	alice.Detour("connect", "-n", "shop")
	w := kit.MonitorCatalog(t, client, "")
	one := &http.Client{Transport: client(0)}
	answers := func(who string) func() bool {
		return func() bool { got, err := kit.AskCatalog(one, "alice"); return err == nil && got == who }
	}
	attach := func() {
		require.Contains(t, alice.Detour("intercept", "catalog", "--port", "18080", "--header", "x-dev=alice",
			"--attach", "-n", "shop"), "by attach, agents 3/3")
		kit.Eventually(t, answers("alice"))
	}
	kept := &http.Client{Transport: client(1)}
	nobody := func() {
		got, err := kit.AskCatalog(kept, "")
		require.NoError(t, err)
		require.Equal(t, "cluster", got)
	}
	leave := func() {
		alice.Detour("leave", "catalog")
		kit.Eventually(t, answers("cluster"))
	}

	attach()
	nobody() // on a connection that leads to the agent from now on
	pid := alice.DaemonPID()
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	kit.Eventually(t, answers("cluster"), "the app answers for a laptop that is silent")
	kit.Eventually(t, func() bool {
		return strings.Contains(kit.Kubectl(t, "-n", "shop", "get", "intercepts"),
			"LaptopGone")
	})
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	kit.Eventually(t, answers("alice"), "the laptop is taken up again")
	leave()
	attach() // while the agents still wait for a laptop
	leave()
	// They end although a client keeps its connection: the agent tells it to open another.
	kit.WaitForAttachedAgentsToEnd(t, nobody)
	attach()
	leave()
	require.Equal(t, before, catalogPods(t), "nothing was restarted")

	all := w.Stop()
	for _, one := range all {
		require.Equal(t, "cluster", one.Edition)
	}
	require.Greater(t, len(all), 100)
}

func TestAttachRefused(t *testing.T) {
	kit.Connect(t)
	file := kit.Testdata("tokenless.yaml")
	kit.Kubectl(t, "apply", "-f", file)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "-f", file) })
	kit.WaitForRollout(t, "shop", "deployment/tokenless")
	require.Contains(t, kit.DetourFails(t, "intercept", "tokenless", "--port", "18080:http", "--attach"),
		"has no service account token")
	require.Contains(t, kit.DetourFails(t, "intercept", "tokenless", "--port", "18080:datagrams", "--attach"),
		"is a UDP port, and an attached agent can take over TCP ports only: leave out --attach")

	kit.Kubectl(t, "label", "namespace", "shop", "pod-security.kubernetes.io/enforce=baseline")
	t.Cleanup(func() { kit.Kubectl(t, "label", "namespace", "shop", "pod-security.kubernetes.io/enforce-") })
	kit.RemoveAgent(t, "frontend")
	require.Contains(t, kit.DetourFails(t, "intercept", "frontend", "--port", "18080", "--attach"),
		"the cluster does not let the agent be attached")
}
