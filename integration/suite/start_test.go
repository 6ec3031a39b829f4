package suite

import (
	"fmt"
	"net/http"
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
	t.Cleanup(func() {
		allow(rules)
		kubectl(t, "-n", "detour-system", "rollout", "status", "deployment/traffic-manager", "--timeout=120s")
	})
	allow(strings.ReplaceAll(rules, "traffic-manager-keys", "other-keys"))
	kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager")
	require.Eventually(t, func() bool { return strings.Contains(managerLog(), "secret detour-system/traffic-manager-keys") }, 60*time.Second, 200*time.Millisecond)
	allow(rules)
	kubectl(t, "-n", "detour-system", "rollout", "status", "deployment/traffic-manager", "--timeout=120s")
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

// A traffic-manager that was installed anew has another key and another authority: laptops make their sessions again, and agents that trust the
// one before are made again with the intercept that needs them.
func TestManagerWithOtherKeys(t *testing.T) {
	connected(t)
	port := laptopService(t)
	detour(t, "intercept", "catalog", "--port", port)
	require.Equal(t, "laptop", edition(t, frontend))
	before := ownSession()
	kubectl(t, "-n", "detour-system", "delete", "secret", "traffic-manager-keys")
	kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager")
	require.Eventually(t, func() bool {
		page, err := get(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 2 * time.Second}, frontend)
		return err == nil && editionOf(page) == "laptop"
	}, 120*time.Second, 300*time.Millisecond)
	require.NotEqual(t, before, ownSession())
	require.Eventually(t, func() bool { return strings.Contains(detour(t, "status"), "Active") }, 60*time.Second, 500*time.Millisecond)
	detour(t, "leave", "catalog")
	require.Equal(t, "cluster", edition(t, frontend))
}

// The API server makes pods without the agent while it cannot reach the webhook. Who waits for an intercept does so no longer than needed.
func TestPodsMadeWithoutTheWebhook(t *testing.T) {
	withoutAgent(t, "stock")
	connected(t)
	port := laptopService(t)
	webhook := func(patch string) {
		t.Helper()
		kubectl(t, "patch", "mutatingwebhookconfiguration", "detour-traffic-agent", "--type=json", "-p", patch)
	}
	without := kubectl(t, "get", "mutatingwebhookconfiguration", "detour-traffic-agent", "-o", "jsonpath={.webhooks[0].matchConditions}")
	restore := func() {
		webhook(`[{"op":"replace","path":"/webhooks/0/matchConditions","value":` + without + `}]`)
	}
	t.Cleanup(restore) // no other test would get an agent
	webhook(`[{"op":"add","path":"/webhooks/0/matchConditions/-","value":{"name":"never","expression":"false"}}]`)
	ended := make(chan string, 1)
	go func() {
		out, err := command("detour", "intercept", "stock", "--port", port)
		ended <- fmt.Sprintln(out, err)
	}()
	made := func() bool {
		return kubectl(t, "-n", "shop", "get", "pods", "-l", "app=stock", "-o", `jsonpath={.items[*].metadata.annotations.detour\.dev/agent}`) != ""
	}
	require.Eventually(t, made, 120*time.Second, 50*time.Millisecond)
	restore()
	require.Contains(t, <-ended, "<nil>")
	require.Contains(t, detour(t, "status"), "Active")
	require.Contains(t, kubectl(t, "-n", "shop", "get", "deployment", "stock", "-o", "jsonpath={.spec.template.metadata.annotations}"), "restart", "it was rolled out once more")
	detour(t, "leave", "stock")
}
