package kit

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// WaitForRollout waits until a workload, such as deployment/catalog, is rolled out.
func WaitForRollout(t *testing.T, namespace, workload string) {
	t.Helper()
	Kubectl(t, "-n", namespace, "rollout", "status", workload, "--timeout="+Patience(t).String())
}

// Apply applies a manifest of the suite and deletes its objects when the test ends.
func Apply(t *testing.T, name string) {
	t.Helper()
	Kubectl(t, "apply", "-f", Testdata(name))
	t.Cleanup(func() { Kubectl(t, "delete", "-f", Testdata(name), "--ignore-not-found", "--wait=false") })
}

// DeployTarget deploys the service target, which has two ports, into the namespace other, to which
// no test connects by default. It stays for the tests that follow.
func DeployTarget(t *testing.T) {
	t.Helper()
	Kubectl(t, "apply", "-f", Testdata("target.yaml"))
	WaitForRollout(t, "other", "deployment/target")
}

// DeploySubject deploys the service subject and returns its manifest. It stays for the tests that
// follow, with its agents.
func DeploySubject(t *testing.T) (manifest string) {
	t.Helper()
	manifest = Testdata("subject.yaml")
	Kubectl(t, "apply", "-f", manifest)
	WaitForRollout(t, "shop", "deployment/subject")
	return manifest
}

// RemoveAgent rolls a deployment of the shop back to pods that never had the agent.
func RemoveAgent(t *testing.T, deployment string) {
	t.Helper()
	RemoveAgentIn(t, "shop", deployment)
	Eventually(t, func() bool {
		const containers = "jsonpath={.items[*].spec.initContainers[*].name}"
		names := Kubectl(t, "-n", "shop", "get", "pods", "-l", "app="+deployment, "-o", containers)
		return !strings.Contains(names, "agent")
	}, "the old pods of %s end", deployment)
}

// RemoveAgentIn rolls a deployment back to pods without the agent, and waits for the new pods only.
func RemoveAgentIn(t *testing.T, namespace, deployment string) {
	t.Helper()
	const patch = `{"spec":{"template":{"metadata":{"annotations":{"detour.dev/agent":null}}}}}`
	Kubectl(t, "-n", namespace, "patch", "deployment", deployment, "--type=merge", "-p", patch)
	WaitForRollout(t, namespace, "deployment/"+deployment)
}

// ClusterIP returns a service's address in the cluster.
func ClusterIP(t *testing.T, namespace, service string) string {
	t.Helper()
	return Kubectl(t, "-n", namespace, "get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
}

// Pods returns what a Go template makes of each pod of an app of the shop.
func Pods(t *testing.T, app, template string) string {
	t.Helper()
	return Kubectl(t, "-n", "shop", "get", "pods", "-l", "app="+app, "-o",
		"go-template={{range .items}}"+template+"{{end}}")
}

// RunningPods returns the names of an app's pods in which the app itself runs, and not the agent in
// its place.
func RunningPods(t *testing.T, app string) []string {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ Containers []struct{ Command []string } }
			Status   struct{ Phase string }
		}
	}
	raw := Kubectl(t, "-n", "shop", "get", "pods", "-l", "app="+app, "-o", "json")
	require.NoError(t, json.Unmarshal([]byte(raw), &list))
	var names []string
	for _, p := range list.Items {
		ended := p.Status.Phase == "Succeeded" || p.Status.Phase == "Failed"
		if p.Spec.Containers[0].Command[0] != "/traffic-agent" && !ended {
			names = append(names, p.Metadata.Name)
		}
	}
	return names
}

// Evict requests the eviction of a pod of the shop until its disruption budget allows it.
func Evict(t *testing.T, name string) {
	t.Helper()
	Eventually(t, func() bool {
		cmd := exec.Command("kubectl", "create", "--raw", "/api/v1/namespaces/shop/pods/"+name+"/eviction", "-f", "-")
		cmd.Stdin = strings.NewReader(fmt.Sprintf(
			`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"namespace":"shop","name":%q}}`, name))
		out, err := cmd.CombinedOutput()
		if err != nil {
			assert.Contains(t, string(out), "disruption budget")
		}
		return err == nil
	}, "the eviction of %s", name)
}

// ManagerLog returns the traffic-manager's log, or nothing while it has no pod.
func ManagerLog() string {
	out, _ := Run("kubectl", "-n", "detour-system", "logs", "deployment/traffic-manager")
	return out
}
