package suite

import (
	"strings"
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
