package suite

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster"
)

// argoRollouts has the real controller of Argo Rollouts work on the cluster until the test's end.
func argoRollouts(t *testing.T) {
	t.Helper()
	c, err := cluster.Default()
	require.NoError(t, err)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	program, definitions, err := c.ArgoRollouts(t.Context(), filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/cluster/build"), log)
	require.NoError(t, err)
	kubectl(t, "apply", "--server-side", "-k", definitions)
	t.Cleanup(func() {
		kubectl(t, "delete", "-k", definitions, "--timeout=120s")
		managerKnows(t, false)
	})
	managerKnows(t, true)
	var out bytes.Buffer
	cmd := exec.Command(program, "--kubeconfig", os.Getenv("KUBECONFIG"), "--leader-elect=false", "--metricsPort=18190", "--healthzPort=18191")
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
}

func managerLog() string {
	out, _ := command("kubectl", "-n", "detour-system", "logs", "deployment/traffic-manager")
	return out
}

// managerKnows waits until the traffic-manager says that the cluster has Argo Rollouts, or no longer does.
func managerKnows(t *testing.T, installed bool) {
	t.Helper()
	said := ""
	assert.Eventually(t, func() bool {
		said = managerLog()
		return said != "" && installed == (strings.LastIndex(said, "installed=true") > strings.LastIndex(said, "installed=false"))
	}, 90*time.Second, 500*time.Millisecond)
	if t.Failed() {
		t.Fatal(said)
	}
}

// rollout reads a field of the Rollout.
func rollout(t *testing.T, field string) string {
	t.Helper()
	return kubectl(t, "-n", "shop", "get", "rollout", "web", "-o", "jsonpath={"+field+"}")
}

// Argo Rollouts that came after the traffic-manager are intercepted, replaced, scaled and released as other workloads are. None of it makes a
// release of its own: these have pauses that nobody would end.
func TestArgoRollout(t *testing.T) {
	if log := managerLog(); !strings.Contains(log, "installed=") {
		require.NotContains(t, log, "argoproj", "nothing is said of what is not there")
	}
	argoRollouts(t)
	manifest := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/rollout.yaml")
	kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kubectl(t, "delete", "-f", manifest) })
	require.Eventually(t, func() bool { return rollout(t, ".status.phase") == "Healthy" }, 120*time.Second, 500*time.Millisecond)
	stable, template := rollout(t, ".status.stableRS"), rollout(t, ".spec.template")
	connected(t)
	laptopService(t, 18080)
	require.Contains(t, refused(t, "intercept", "rollout/nothing", "--mode", "replace"), "rollout nothing does not exist")
	require.Regexp(t, `web +80/http +rollout/web +yes, by targetPort`, detour(t, "list", "-n", "shop"))
	stop := load(t, "http://web.shop/", false)
	answers := func(who string) {
		t.Helper()
		for range 20 {
			require.Equal(t, who, edition(t, "http://web.shop/"))
		}
	}

	require.Contains(t, detour(t, "intercept", "web", "--port", "18080", "--mode", "replace"), "container web of rollout/web does not run")
	answers("laptop")
	require.Empty(t, running(t, "web"))
	detour(t, "leave", "web")
	answers("cluster")
	require.Len(t, running(t, "web"), 2)
	n, failures := stop()
	require.Empty(t, failures, "of %d requests: pods were evicted one by one, within their budget", n)
	require.Equal(t, template, rollout(t, ".spec.template"))
	require.Equal(t, stable, rollout(t, ".status.stableRS"))

	require.Contains(t, detour(t, "intercept", "web", "--port", "18080"), "of rollout/web -> 127.0.0.1:18080")
	answers("laptop")
	agents := func(want string) {
		t.Helper()
		require.Eventually(t, func() bool {
			return kubectl(t, "-n", "shop", "get", "intercepts", "-o", "jsonpath={.items[*].status.agents}") == want
		}, 90*time.Second, 500*time.Millisecond, "agents %s", want)
	}
	kubectl(t, "-n", "shop", "scale", "rollout/web", "--replicas=3")
	agents("3/3")
	answers("laptop")

	// A release meanwhile: its pods have the agent too.
	kubectl(t, "-n", "shop", "patch", "rollout", "web", "--type=merge", "-p", `{"spec":{"template":{"metadata":{"annotations":{"release":"2"}}}}}`)
	require.Eventually(t, func() bool { return rollout(t, ".status.phase") == "Paused" }, 90*time.Second, 500*time.Millisecond, "half of the pods are of the release")
	for range 20 {
		require.Equal(t, "laptop", edition(t, "http://web-canary.shop/"))
	}
	answers("laptop")
	detour(t, "leave", "web")
	answers("cluster")
}
