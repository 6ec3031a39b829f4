package suite

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// The agent leaves the ports alone that an annotation lists, and those that a mesh's proxy
// redirects. The proxy of this test is not a real one: it has the container name by which detour
// recognizes it.
func TestPortsLeftAlone(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Machine))
	manifest := kit.Testdata("mesh.yaml")
	kit.Kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "-f", manifest, "--wait=false") })
	kit.WaitForRollout(t, "shop", "deployment/meshed")
	kit.Connect(t)
	port := kit.ServePage(t)
	require.Contains(t, kit.DetourFails(t, "intercept", "meshed", "--port", port+":admin"),
		"port 9000, which must not be intercepted: the pods' annotation detour.dev/skip-inbound-ports lists it")
	require.Contains(t, kit.Detour(t, "list", "-n", "shop"), "must not be intercepted")
	kit.Kubectl(t, "-n", "shop", "rollout", "pause", "deployment/meshed")
	paused := "deployment/meshed is paused: resume it"
	require.Regexp(t, paused+".*; or use --attach", kit.DetourFails(t, "intercept", "meshed", "--port", port+":http"))
	require.Regexp(t, `(?m)^meshed +80/http +deployment/meshed +with --attach: `+paused, kit.Detour(t, "list", "-n",
		"shop"))
	kit.Kubectl(t, "-n", "shop", "rollout", "resume", "deployment/meshed")
	require.Contains(t, kit.Detour(t, "intercept", "meshed", "--port", port+":http"), "by nftables")
	kit.WaitForEndpoints(t, "http://meshed.shop/")
	require.Equal(t, "laptop", kit.Edition(t, "http://meshed.shop/"))
	set := kit.AgentRules(t, "meshed")
	require.Regexp(t, "tcp dport 8080 .*redirect to :9910", set)
	require.NotContains(t, set, "dport 9000")
	kit.Kubectl(t, "-n", "shop", "rollout", "pause", "deployment/meshed")
	require.Never(t, func() bool { return kit.Edition(t, "http://meshed.shop/") != "laptop" }, 2*time.Second,
		100*time.Millisecond, "what is in force stays so")
	kit.Kubectl(t, "-n", "shop", "rollout", "resume", "deployment/meshed")

	kit.Kubectl(t, "-n", "shop", "patch", "deployment", "meshed", "-p",
		`{"spec":{"template":{"spec":{"containers":[{"name":"istio-proxy","image":"detour.local/shop:dev","imagePullPolicy":"IfNotPresent","command":["/stock"]}]}}}}`)
	kit.Eventually(t, func() bool {
		return strings.Contains(kit.Query(t, "shop", "intercepts", "{.items[*].status.conditions[*].message}"),
			"through the pods' Istio proxy")
	})
	kit.Eventually(t, kit.AnsweredBy("meshed", "cluster"), "in the middle of a rollout of a single pod")
	kit.Detour(t, "leave", "meshed")
	require.Contains(t, kit.DetourFails(t, "intercept", "meshed", "--port", port+":http"),
		"traffic.sidecar.istio.io/excludeInboundPorts")
}
