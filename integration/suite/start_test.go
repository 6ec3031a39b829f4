package suite

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A manager that may not read its keys when it starts, as while an API server has not read all roles yet, waits for a while instead of ending.
func TestManagerWaitsForItsKeys(t *testing.T) {
	rules := kubectl(t, "-n", "detour-system", "get", "role", "traffic-manager", "-o", "jsonpath={.rules}")
	require.Contains(t, rules, "traffic-manager-keys")
	allow := func(rules string) {
		kubectl(t, "-n", "detour-system", "patch", "role", "traffic-manager", "--type=merge", "-p", `{"rules":`+rules+`}`)
	}
	t.Cleanup(func() { allow(rules) })
	allow(strings.ReplaceAll(rules, "traffic-manager-keys", "other-keys"))
	kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager")
	require.Eventually(t, func() bool { return strings.Contains(managerLog(), "secret detour-system/traffic-manager-keys") }, 60*time.Second, 200*time.Millisecond)
	allow(rules)
	kubectl(t, "-n", "detour-system", "rollout", "status", "deployment/traffic-manager", "--timeout=60s")
	require.Equal(t, "0", kubectl(t, "-n", "detour-system", "get", "pods", "-l", "app=traffic-manager", "-o", "jsonpath={.items[*].status.containerStatuses[0].restartCount}"), "it has not ended")
}

// A manager that cannot give its lease back, and whose pod was deleted by force, as that of a lost node: the next one takes it, when the old
// one's token is worth nothing any more.
func TestManagerOfALostNode(t *testing.T) {
	old := processes(t, "/traffic", "manager")
	require.Len(t, old, 1)
	pod := kubectl(t, "-n", "detour-system", "get", "pods", "-l", "app=traffic-manager", "-o", "jsonpath={.items[0].metadata.name}")
	require.NoError(t, syscall.Kill(old[0], syscall.SIGSTOP)) // the kubelet kills it for good
	kubectl(t, "-n", "detour-system", "delete", "pod", pod, "--force", "--grace-period=0")
	require.Eventually(t, func() bool {
		return strings.Contains(managerLog(), "the lease's holder has no pod any more: taking it") && strings.Contains(managerLog(), "Successfully acquired lease")
	}, 120*time.Second, 500*time.Millisecond)
	connected(t)
}
