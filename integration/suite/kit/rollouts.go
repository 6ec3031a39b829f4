package kit

import (
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster"
)

// StartArgoRollouts runs the real controller of Argo Rollouts on the cluster until the test ends.
func StartArgoRollouts(t *testing.T) {
	t.Helper()
	c, err := cluster.Default()
	require.NoError(t, err)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	program, definitions, err := c.ArgoRollouts(t.Context(), Path("integration", "cluster", "build"), log)
	require.NoError(t, err)
	Kubectl(t, "apply", "--server-side", "-k", definitions)
	Eventually(t, func() bool {
		_, err := Run("kubectl", "-n", "shop", "get", "rollouts")
		return err == nil
	}, "the API server knows Rollouts")
	t.Cleanup(func() {
		Kubectl(t, "delete", "-k", definitions, "--timeout="+Patience(t).String())
		WaitUntilManagerSees(t, false)
	})
	metrics := FreePorts(t, 2)
	var out Buffer
	cmd := exec.Command(program, "--kubeconfig", os.Getenv("KUBECONFIG"), "--leader-elect=false",
		"--metricsPort="+strconv.Itoa(metrics), "--healthzPort="+strconv.Itoa(metrics+1))
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

// WaitUntilManagerSees waits until the traffic-manager logs that the cluster has Argo Rollouts, or
// no longer has them.
func WaitUntilManagerSees(t *testing.T, installed bool) {
	t.Helper()
	log := ""
	seen := Holds(t, func() bool {
		log = ManagerLog()
		return log != "" && installed == (strings.LastIndex(log, "installed=true") > strings.LastIndex(log,
			"installed=false"))
	})
	require.True(t, seen, log)
}

// RolloutField returns a field of a Rollout of the shop, given as a JSON path.
func RolloutField(t *testing.T, name, field string) string {
	t.Helper()
	return Kubectl(t, "-n", "shop", "get", "rollout", name, "-o", "jsonpath={"+field+"}")
}

// WaitForRolloutPhase waits until a Rollout of the shop has a phase.
func WaitForRolloutPhase(t *testing.T, name, phase string) {
	t.Helper()
	Eventually(t, func() bool { return RolloutField(t, name, ".status.phase") == phase }, "rollout/%s becomes %s", name,
		phase)
}
