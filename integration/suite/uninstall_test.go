package suite

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// everything lists all objects of the cluster by name, and the templates of the shop's workloads.
// It leaves out the objects that Kubernetes itself makes and numbers anew all the time.
func everything(t *testing.T) []string {
	t.Helper()
	var kinds []string
	for _, kind := range strings.Fields(kit.Kubectl(t, "api-resources", "--verbs=list", "-o", "name")) {
		switch kind, _, _ := strings.Cut(kind, "."); kind {
		case "events", "pods", "replicasets", "controllerrevisions", "endpointslices", "endpoints", "leases",
			"componentstatuses", "ipaddresses":
		default:
			kinds = append(kinds, kind)
		}
	}
	slices.Sort(kinds)
	names := kit.Kubectl(t, "get", strings.Join(slices.Compact(kinds), ","), "-A", "--ignore-not-found", "-o",
		`jsonpath={range .items[*]}{.kind} {.metadata.namespace}/{.metadata.name}{"\n"}{end}`)
	specs := kit.Query(t, "shop", "deployments,services",
		`{range .items[*]}{.metadata.name} {.spec.template.metadata} {.spec.template.spec.containers[*].name} {.spec.ports}{"\n"}{end}`)
	containers := kit.Query(t, "shop", "pods",
		`{range .items[*]}{.metadata.labels.app} {.spec.initContainers[*].name} {.spec.containers[*].name}{"\n"}{end}`)
	all := strings.Split(names+"\n"+specs+"\n"+containers, "\n")
	slices.Sort(all)
	return all
}

// Everything that was installed and used can be removed without a trace.
func TestUninstallLeavesNothing(t *testing.T) {
	_, _ = kit.Run("detour", "uninstall")
	t.Cleanup(func() {
		_, _ = kit.Run("detour", "quit") // the session of a traffic-manager that is about to be replaced
		_, _ = kit.Run("detour", "uninstall")
		kit.Kubectl(t, "delete", "namespace", "detour-system", "--ignore-not-found")
		kit.Detour(t, "install", "--image", kit.ManagerImage)
	})
	settled := func() bool {
		return !strings.Contains(kit.Query(t, "shop", "pods",
			"{.items[*].metadata.deletionTimestamp}{.items[*].spec.initContainers[*].name}"), "-")
	}
	kit.Eventually(t, settled)
	before := everything(t)
	require.Contains(t, kit.DetourFails(t, "connect", "-n", "shop"), "detour install",
		"it says what to do without a traffic-manager")
	require.Contains(t, kit.DetourFails(t, "intercept", "catalog", "--port", "18080", "-n", "shop"), "detour install")
	require.Contains(t, kit.DetourFails(t, "install", "--image", "detour.local/nothing:dev", "--image-pull-policy",
		"Never", "--timeout", "10s"),
		"and the cluster is as it was before: container traffic-manager of pod traffic-manager-")
	kit.Eventually(t, func() bool { return slices.Equal(before, everything(t)) }, "the namespace that was made ends")

	// A namespace that was there before stays, and its other pods are not touched.
	kit.Kubectl(t, "create", "namespace", "detour-system")
	kit.Eventually(t, func() bool {
		return strings.Count(kit.Kubectl(t, "-n", "detour-system", "get", "serviceaccount/default",
			"configmap/kube-root-ca.crt", "--ignore-not-found", "-o", "name"), "/") == 2
	})
	before = everything(t)
	require.Contains(t, kit.Detour(t, "install", "--image", kit.ManagerImage),
		"the namespace detour-system was there before")
	require.NotContains(t, kit.Kubectl(t, "-n", "detour-system", "get", "role", "detour-connect", "-o", "yaml"),
		"portforward")
	port := kit.ServePage(t)
	kit.Detour(t, "intercept", "catalog", "--port", port, "-n", "shop")
	kit.Detour(t, "intercept", "frontend", "--port", port, "-n", "shop", "--attach")
	require.NotEqual(t, before, everything(t))
	kit.Detour(t, "quit")
	kit.Detour(t, "uninstall")
	kit.Eventually(t, settled, "the pods come back without the agent")
	require.Equal(t, before, everything(t))

	// Uninstall also removes what is left after somebody has deleted the namespace.
	kit.Detour(t, "install", "--image", kit.ManagerImage)
	require.Contains(t, kit.DetourFails(t, "uninstall", "--manager-namespace", "other-system"),
		"the traffic-manager is in namespace detour-system, not in other-system: run `detour uninstall --manager-namespace detour-system`")
	kit.Kubectl(t, "delete", "namespace", "detour-system")
	require.Contains(t, kit.Detour(t, "uninstall"), "removed the traffic-manager")
	kit.Kubectl(t, "create", "namespace", "detour-system")
	kit.Eventually(t, func() bool { return slices.Equal(before, everything(t)) })
	require.Contains(t, kit.Detour(t, "uninstall"), "no traffic-manager is installed")
	kit.WaitForAttachedAgentsToEnd(t, func() {})
}

// Install waits for the end of a namespace that is being deleted and says so. When that takes too
// long it says what to do.
func TestInstallIntoAnEndingNamespace(t *testing.T) {
	kit.Kubectl(t, "create", "namespace", "ending")
	kit.Kubectl(t, "-n", "ending", "create", "configmap", "holder")
	kit.Kubectl(t, "-n", "ending", "patch", "configmap", "holder", "-p",
		`{"metadata":{"finalizers":["example.com/hold"]}}`)
	t.Cleanup(func() {
		kit.Kubectl(t, "-n", "ending", "patch", "configmap", "holder", "-p", `{"metadata":{"finalizers":null}}`)
	})
	kit.Kubectl(t, "delete", "namespace", "ending", "--wait=false")
	out, err := kit.Run("detour", "install", "--manager-namespace", "ending", "--timeout", "4s")
	require.Error(t, err)
	require.Contains(t, out, "waiting until the namespace ending is deleted")
	require.Contains(t, out,
		"it is still being deleted: `kubectl get namespace ending -o yaml` shows what it waits for")
}
