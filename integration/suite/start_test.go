package suite

import (
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// A traffic-manager that may not read its keys when it starts waits instead of exiting. This
// happens while an API server has not loaded all roles yet.
func TestManagerWaitsForItsKeys(t *testing.T) {
	rules := kit.Query(t, "detour-system", "role traffic-manager", "{.rules}")
	require.Contains(t, rules, "traffic-manager-keys")
	allow := func(rules string) {
		kit.Kubectl(t, "-n", "detour-system", "patch", "role", "traffic-manager", "--type=merge", "-p",
			`{"rules":`+rules+`}`)
	}
	t.Cleanup(func() {
		allow(rules)
		kit.WaitForRollout(t, "detour-system", "deployment/traffic-manager")
	})
	allow(strings.ReplaceAll(rules, "traffic-manager-keys", "other-keys"))
	kit.Kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager")
	kit.Eventually(t, func() bool {
		return strings.Contains(kit.ManagerLog(),
			"Secret detour-system/traffic-manager-keys")
	})
	allow(rules)
	kit.WaitForRollout(t, "detour-system", "deployment/traffic-manager")
	require.Equal(t, "0", kit.Query(t, "detour-system", "pods -l app=traffic-manager",
		"{.items[*].status.containerStatuses[0].restartCount}"), "it has not ended")
}

// A traffic-manager cannot release its lease, and its pod was deleted by force, as on a lost node.
// The next traffic-manager takes the lease when the old one's token is no longer valid.
func TestManagerOfALostNode(t *testing.T) {
	old := kit.Processes(t, "/traffic", "manager")
	require.Len(t, old, 1)
	pod := kit.Query(t, "detour-system", "pods -l app=traffic-manager", "{.items[0].metadata.name}")
	require.NoError(t, syscall.Kill(old[0], syscall.SIGSTOP)) // it cannot release its lease; the kubelet kills it later
	kit.Kubectl(t, "-n", "detour-system", "delete", "pod", pod, "--force", "--grace-period=0")
	kit.Eventually(t, func() bool {
		return strings.Contains(kit.ManagerLog(),
			"taking the lease over: the pod that holds it no longer exists") &&
			strings.Contains(kit.ManagerLog(), "Successfully acquired lease")
	})
	kit.Connect(t)
}

// A traffic-manager that was installed anew has another key and another authority. Laptops make new
// sessions, and pods whose agents trust the old authority are replaced together with the intercept
// that needs them.
func TestManagerWithOtherKeys(t *testing.T) {
	kit.Connect(t)
	port := kit.ServePage(t)
	kit.Detour(t, "intercept", "catalog", "--port", port)
	require.Equal(t, "laptop", kit.Edition(t, kit.FrontendURL))
	before := kit.MachineSession()
	kit.Kubectl(t, "-n", "detour-system", "delete", "secret", "traffic-manager-keys")
	kit.Kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager")
	kit.Eventually(t, func() bool {
		page, err := kit.Get(&http.Client{
			Transport: &http.Transport{DisableKeepAlives: true},
			Timeout:   2 * time.Second,
		}, kit.FrontendURL)
		return err == nil && kit.EditionOf(page) == "laptop"
	})
	require.NotEqual(t, before, kit.MachineSession())
	kit.Eventually(t, func() bool { return strings.Contains(kit.Detour(t, "status"), "Active") })
	kit.Detour(t, "leave", "catalog")
	require.Equal(t, "cluster", kit.Edition(t, kit.FrontendURL))
}

// While the API server cannot reach the webhook it makes pods without the agent. An intercept that
// waits for these pods waits no longer than needed.
func TestPodsMadeWithoutTheWebhook(t *testing.T) {
	kit.RemoveAgent(t, "stock")
	kit.Connect(t)
	port := kit.ServePage(t)
	webhook := func(patch string) {
		t.Helper()
		kit.Kubectl(t, "patch", "mutatingwebhookconfiguration", "detour-traffic-agent", "--type=json", "-p", patch)
	}
	without := kit.Kubectl(t, "get", "mutatingwebhookconfiguration", "detour-traffic-agent", "-o",
		"jsonpath={.webhooks[0].matchConditions}")
	restore := func() {
		webhook(`[{"op":"replace","path":"/webhooks/0/matchConditions","value":` + without + `}]`)
	}
	t.Cleanup(restore) // else no other test would get an agent
	webhook(`[{"op":"add","path":"/webhooks/0/matchConditions/-","value":{"name":"never","expression":"false"}}]`)
	ended := make(chan string, 1)
	go func() {
		out, err := kit.Run("detour", "intercept", "stock", "--port", port)
		ended <- fmt.Sprintln(out, err)
	}()
	made := func() bool {
		return kit.Query(t, "shop", "pods -l app=stock", `{.items[*].metadata.annotations.detour\.dev/agent}`) != ""
	}
	kit.Eventually(t, made)
	restore()
	require.Contains(t, <-ended, "<nil>")
	require.Contains(t, kit.Detour(t, "status"), "Active")
	require.Contains(t, kit.Query(t, "shop", "deployment stock", "{.spec.template.metadata.annotations}"), "restart",
		"it was rolled out once more")
	kit.Detour(t, "leave", "stock")
}
