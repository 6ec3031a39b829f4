package suite

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// podsOf says something of each of an app's pods.
func podsOf(t *testing.T, app, template string) string {
	t.Helper()
	return kubectl(t, "-n", "shop", "get", "pods", "-l", "app="+app, "-o", "go-template={{range .items}}"+template+"{{end}}")
}

// rules are the agent's in the network of an app's only pod: the nodes are on this machine.
func rules(t *testing.T, app string) string {
	t.Helper()
	uid := podsOf(t, app, "{{if not .metadata.deletionTimestamp}}{{.metadata.uid}}{{end}}")
	all, err := filepath.Glob("/proc/[0-9]*/cgroup")
	require.NoError(t, err)
	for _, path := range all {
		group, err := os.ReadFile(path)
		if err != nil || !strings.Contains(strings.ReplaceAll(string(group), "_", "-"), uid) {
			continue
		}
		out, err := exec.Command("nsenter", "--net="+filepath.Join(filepath.Dir(path), "ns/net"), "--", "nft", "list", "table", "inet", "detour").CombinedOutput()
		require.NoError(t, err, string(out))
		return string(out)
	}
	require.Fail(t, "no process of the pod runs on this machine")
	return ""
}

// The agent stays away from ports that are to be left alone, and from those that a mesh's proxy takes. The proxy is not a real one: it has the name
// by which detour knows it.
func TestPortsLeftAlone(t *testing.T) {
	t.Parallel()
	manifest := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/mesh.yaml")
	kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kubectl(t, "delete", "-f", manifest, "--wait=false") })
	kubectl(t, "-n", "shop", "rollout", "status", "deployment/meshed", "--timeout=120s")
	connected(t)
	port := laptopService(t)
	require.Contains(t, refused(t, "intercept", "meshed", "--port", port+":admin"), "port 9000, which must not be intercepted: the pods' annotation detour.dev/skip-inbound-ports lists it")
	require.Contains(t, detour(t, "list", "-n", "shop"), "must not be intercepted")
	kubectl(t, "-n", "shop", "rollout", "pause", "deployment/meshed")
	paused := "deployment/meshed is paused: resume it"
	require.Regexp(t, paused+".*; or use --attach", refused(t, "intercept", "meshed", "--port", port+":http"))
	require.Regexp(t, `(?m)^meshed +80/http +deployment/meshed +with --attach: `+paused, detour(t, "list", "-n", "shop"))
	kubectl(t, "-n", "shop", "rollout", "resume", "deployment/meshed")
	require.Contains(t, detour(t, "intercept", "meshed", "--port", port+":http"), "by nftables")
	settled(t, "http://meshed.shop/")
	require.Equal(t, "laptop", edition(t, "http://meshed.shop/"))
	set := rules(t, "meshed")
	require.Regexp(t, "tcp dport 8080 .*redirect to :9910", set)
	require.NotContains(t, set, "dport 9000")
	kubectl(t, "-n", "shop", "rollout", "pause", "deployment/meshed")
	require.Never(t, func() bool { return edition(t, "http://meshed.shop/") != "laptop" }, 2*time.Second, 100*time.Millisecond, "what is in force stays so")
	kubectl(t, "-n", "shop", "rollout", "resume", "deployment/meshed")

	kubectl(t, "-n", "shop", "patch", "deployment", "meshed", "-p", `{"spec":{"template":{"spec":{"containers":[{"name":"istio-proxy","image":"detour.local/shop:dev","imagePullPolicy":"IfNotPresent","command":["/stock"]}]}}}}`)
	require.Eventually(t, func() bool {
		return strings.Contains(kubectl(t, "-n", "shop", "get", "intercepts", "-o", "jsonpath={.items[*].status.conditions[*].message}"), "through the pods' Istio proxy")
	}, 90*time.Second, 500*time.Millisecond)
	require.Eventually(t, answersAs("meshed", "cluster"), patience, 100*time.Millisecond, "in the middle of a rollout of a single pod")
	detour(t, "leave", "meshed")
	require.Contains(t, refused(t, "intercept", "meshed", "--port", port+":http"), "traffic.sidecar.istio.io/excludeInboundPorts")
}
