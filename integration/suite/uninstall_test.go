package suite

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// everything lists all objects of the cluster by name, and what the shop's workloads are made of. What Kubernetes itself makes and
// numbers anew all the time is left out.
func everything(t *testing.T) []string {
	t.Helper()
	var kinds []string
	for _, kind := range strings.Fields(kubectl(t, "api-resources", "--verbs=list", "-o", "name")) {
		switch kind, _, _ := strings.Cut(kind, "."); kind {
		case "events", "pods", "replicasets", "controllerrevisions", "endpointslices", "endpoints", "leases", "componentstatuses", "ipaddresses":
		default:
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	names := kubectl(t, "get", strings.Join(slices.Compact(kinds), ","), "-A", "--ignore-not-found", "-o", `jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
	specs := kubectl(t, "-n", "shop", "get", "deployments,services", "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.template.metadata} {.spec.template.spec.containers[*].name} {.spec.ports}{"\n"}{end}`)
	containers := kubectl(t, "-n", "shop", "get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.labels.app} {.spec.initContainers[*].name} {.spec.containers[*].name}{"\n"}{end}`)
	all := strings.Split(names+"\n"+specs+"\n"+containers, "\n")
	slices.Sort(all)
	return all
}

// What is installed and used can be taken away without a trace.
func TestUninstallLeavesNothing(t *testing.T) {
	_, _ = command("detour", "uninstall")
	t.Cleanup(func() {
		_, _ = command("detour", "quit") // a session of a traffic-manager that is about to be another
		_, _ = command("detour", "uninstall")
		kubectl(t, "delete", "namespace", "detour-system", "--ignore-not-found")
		detour(t, "install", "--image", managerImage)
	})
	settled := func() bool {
		return !strings.Contains(kubectl(t, "-n", "shop", "get", "pods", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}{.items[*].spec.initContainers[*].name}"), "-")
	}
	require.Eventually(t, settled, 90*time.Second, time.Second)
	before := everything(t)
	require.Contains(t, refused(t, "connect", "-n", "shop"), "detour install", "it says what to do without a traffic-manager")
	require.Contains(t, refused(t, "intercept", "catalog", "--port", "18080", "-n", "shop"), "detour install")
	require.Contains(t, refused(t, "install", "--image", "detour.local/nothing:dev", "--image-pull-policy", "Never", "--timeout", "10s"), "and the cluster is as it was before: container traffic-manager of pod traffic-manager-")
	require.Eventually(t, func() bool { return slices.Equal(before, everything(t)) }, 90*time.Second, time.Second, "the namespace that was made ends")

	// A namespace that is somebody's stays, and its other pods are nobody's business.
	kubectl(t, "create", "namespace", "detour-system")
	require.Eventually(t, func() bool {
		return strings.Count(kubectl(t, "-n", "detour-system", "get", "serviceaccount/default", "configmap/kube-root-ca.crt", "--ignore-not-found", "-o", "name"), "/") == 2
	}, 30*time.Second, 200*time.Millisecond)
	before = everything(t)
	require.Contains(t, detour(t, "install", "--image", managerImage), "the namespace detour-system was there before")
	require.NotContains(t, kubectl(t, "-n", "detour-system", "get", "role", "detour-connect", "-o", "yaml"), "portforward")
	port := laptopService(t)
	detour(t, "intercept", "catalog", "--port", port, "-n", "shop")
	detour(t, "intercept", "frontend", "--port", port, "-n", "shop", "--attach")
	require.NotEqual(t, before, everything(t))
	detour(t, "quit")
	detour(t, "uninstall")
	require.Eventually(t, settled, 90*time.Second, time.Second, "the pods come back without the agent")
	require.Equal(t, before, everything(t))

	// Also what is left of one whose namespace was deleted by hand.
	detour(t, "install", "--image", managerImage)
	require.Contains(t, refused(t, "uninstall", "--manager-namespace", "other-system"), "the traffic-manager is in namespace detour-system, not in other-system: run `detour uninstall --manager-namespace detour-system`")
	kubectl(t, "delete", "namespace", "detour-system")
	require.Contains(t, detour(t, "uninstall"), "removed the traffic-manager")
	kubectl(t, "create", "namespace", "detour-system")
	require.Eventually(t, func() bool { return slices.Equal(before, everything(t)) }, patience, 500*time.Millisecond)
	require.Contains(t, detour(t, "uninstall"), "no traffic-manager is installed")
	attachedEnd(t, func() {})
}

// Install waits for the end of a namespace that is being deleted, says so, and says what to do when that takes too long.
func TestInstallIntoAnEndingNamespace(t *testing.T) {
	kubectl(t, "create", "namespace", "ending")
	kubectl(t, "-n", "ending", "create", "configmap", "holder")
	kubectl(t, "-n", "ending", "patch", "configmap", "holder", "-p", `{"metadata":{"finalizers":["example.com/hold"]}}`)
	t.Cleanup(func() {
		kubectl(t, "-n", "ending", "patch", "configmap", "holder", "-p", `{"metadata":{"finalizers":null}}`)
	})
	kubectl(t, "delete", "namespace", "ending", "--wait=false")
	out, err := command("detour", "install", "--manager-namespace", "ending", "--timeout", "4s")
	require.Error(t, err)
	require.Contains(t, out, "waiting until the namespace ending is deleted")
	require.Contains(t, out, "it is still being deleted: `kubectl get namespace ending -o yaml` shows what it waits for")
}
