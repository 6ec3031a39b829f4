package suite

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// Argo Rollouts, installed after the traffic-manager, are intercepted, replaced, scaled and
// released like other workloads. Detour never causes a release: these Rollouts have pauses that
// nobody would end.
func TestArgoRollout(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Web), kit.Uses(kit.Machine))
	if log := kit.ManagerLog(); !strings.Contains(log, "installed=") {
		require.NotContains(t, log, "argoproj", "nothing is said of what is not there")
	}
	kit.StartArgoRollouts(t)
	manifest := kit.Testdata("rollout.yaml")
	kit.Kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "-f", manifest, "--wait=false", "--ignore-not-found") })
	all := []string{"blue", "of-deployment", "web"}
	stable := map[string]string{}
	for _, name := range all {
		kit.WaitForRolloutPhase(t, name, "Healthy")
		stable[name] = kit.RolloutField(t, name, ".status.stableRS")
	}
	kit.WaitUntilManagerSees(t, true)
	kit.Connect(t)
	port := kit.ServePage(t)
	list := kit.Detour(t, "list", "-n", "shop")
	require.Regexp(t, `(?m)^web +80/http +rollout/web +yes, by targetPort`, list)
	require.Regexp(t, `(?m)^blue +80/http +rollout/blue +yes, by targetPort`, list)
	require.Regexp(t, `(?m)^of-deployment +80 +rollout/of-deployment +yes, by nftables`, list)
	require.NotContains(t, list, "deployment/template")
	require.Contains(t, kit.DetourFails(t, "intercept", "rollout/nothing", "--mode", "replace"),
		"rollout/nothing does not exist")
	require.Contains(t, kit.DetourFails(t, "intercept", "deployment/template", "--mode", "replace"),
		"deployment/template has no pods, it is only the template of rollout/of-deployment: intercept rollout/of-deployment instead")

	var released string
	t.Run("at once", func(t *testing.T) {
		t.Run("canary", func(t *testing.T) {
			t.Parallel()
			template := kit.RolloutField(t, "web", ".spec.template")
			stop := kit.Load(t, "http://web.shop/", false)
			require.Contains(t, kit.Detour(t, "intercept", "web", "--port", port), "of rollout/web -> 127.0.0.1:"+port)
			kit.RequireAnsweredBy(t, "web", "laptop")
			n, failures := stop()
			require.Empty(t, failures, "of %d requests: pods were evicted one by one", n)
			require.Equal(t, template, kit.RolloutField(t, "web", ".spec.template"))
			require.Equal(t, stable["web"], kit.RolloutField(t, "web", ".status.stableRS"))

			kit.Kubectl(t, "-n", "shop", "scale", "rollout/web", "--replicas=3")
			kit.Eventually(t, func() bool {
				return kit.Query(t, "shop", "intercepts", `{.items[?(@.spec.service=="web")].status.agents}`) == "3/3"
			}, "agents 3/3")
			kit.RequireAnsweredBy(t, "web", "laptop")

			// The pods of a release have the agent too.
			kit.Kubectl(t, "-n", "shop", "patch", "rollout", "web", "--type=merge", "-p",
				`{"spec":{"template":{"metadata":{"annotations":{"release":"2"}}}}}`)
			kit.WaitForRolloutPhase(t, "web", "Paused") // half of the pods belong to the release
			kit.RequireAnsweredBy(t, "web-canary", "laptop")
			kit.RequireAnsweredBy(t, "web", "laptop")
			kit.Detour(t, "leave", "web")
			kit.RequireAnsweredBy(t, "web", "cluster")
			kit.Kubectl(t, "-n", "shop", "delete", "rollout", "web", "--wait=false") // restarting it would take a while
		})

		t.Run("template of a deployment", func(t *testing.T) {
			t.Parallel()
			pod := kit.Kubectl(t, "-n", "shop", "get", "pods", "-l", "app=of-deployment", "-o", "name")
			require.Contains(t, kit.Detour(t, "intercept", "rollout/of-deployment", "--mode", "ingest", "--", "sh",
				"-c", `echo "the colour is $COLOUR"`), "the colour is blue")
			require.Contains(t, kit.Detour(t, "intercept", "of-deployment", "--mode", "ingest", "--", "sh", "-c",
				`echo "the colour is $COLOUR"`), "the colour is blue")
			require.Equal(t, pod, kit.Kubectl(t, "-n", "shop", "get", "pods", "-l", "app=of-deployment", "-o", "name"),
				"nothing has changed in the cluster")
			template := kit.Query(t, "shop", "deployment/template", "{.spec}")
			require.Contains(t, kit.Detour(t, "intercept", "of-deployment", "--port", port, "--mode", "replace"),
				"container app of rollout/of-deployment does not run")
			kit.WaitForEndpoints(t, "http://of-deployment.shop/")
			kit.RequireAnsweredBy(t, "of-deployment", "laptop")
			require.Empty(t, kit.RunningPods(t, "of-deployment"))
			kit.Detour(t, "leave", "of-deployment")
			kit.WaitForEndpoints(t, "http://of-deployment.shop/")
			kit.RequireAnsweredBy(t, "of-deployment", "cluster")
			require.Len(t, kit.RunningPods(t, "of-deployment"), 1)
			require.Contains(t, kit.Detour(t, "intercept", "of-deployment", "--port", port),
				"of rollout/of-deployment -> 127.0.0.1:"+port)
			kit.WaitForEndpoints(t, "http://of-deployment.shop/")
			kit.RequireAnsweredBy(t, "of-deployment", "laptop")
			require.Equal(t, template, kit.Query(t, "shop", "deployment/template", "{.spec}"))
		})

		t.Run("blue and green", func(t *testing.T) {
			t.Parallel()
			require.Contains(t, kit.Detour(t, "intercept", "blue", "--port", port),
				"of rollout/blue -> 127.0.0.1:"+port)
			kit.WaitForEndpoints(t, "http://blue.shop/")
			kit.RequireAnsweredBy(t, "blue", "laptop")
			require.Equal(t, stable["blue"], kit.RolloutField(t, "blue", ".status.stableRS"))

			// The intercept does not cover the release in preview.
			kit.Kubectl(t, "-n", "shop", "patch", "rollout", "blue", "--type=merge", "-p",
				`{"spec":{"template":{"metadata":{"annotations":{"release":"2"}}}}}`)
			kit.WaitForRolloutPhase(t, "blue", "Paused")
			kit.Eventually(t, kit.AnsweredBy("blue-preview", "cluster"))
			kit.RequireAnsweredBy(t, "blue-preview", "cluster")
			kit.RequireAnsweredBy(t, "blue", "laptop")

			// `kubectl argo rollouts promote` does the same.
			kit.Kubectl(t, "-n", "shop", "patch", "rollout", "blue", "--subresource=status", "--type=merge", "-p",
				`{"status":{"pauseConditions":null}}`)
			kit.WaitForRolloutPhase(t, "blue", "Healthy")
			require.NotEqual(t, stable["blue"], kit.RolloutField(t, "blue", ".status.stableRS"))
			released = kit.RolloutField(t, "blue", ".status.stableRS")
			kit.Eventually(t, kit.AnsweredBy("blue-preview", "laptop"))
			kit.WaitForEndpoints(t, "http://blue.shop/")
			kit.RequireAnsweredBy(t, "blue", "laptop")
		})
	})
	stable["blue"] = released

	t.Run("uninstall", func(t *testing.T) {
		kit.Alone(t)
		t.Cleanup(func() { kit.Detour(t, "install", "--image", kit.ManagerImage) })
		require.Contains(t, kit.Detour(t, "uninstall"), "rollout/of-deployment")
		for _, name := range all[:2] {
			require.NotContains(t, kit.RolloutField(t, name, ".metadata.annotations"), "detour.dev")
			require.Equal(t, stable[name], kit.RolloutField(t, name, ".status.stableRS"), "no release")
		}
		for _, name := range all[:2] {
			kit.Eventually(t, func() bool {
				page, _ := kit.Run("kubectl", "get", "--raw", "/api/v1/namespaces/shop/services/"+name+":80/proxy/")
				return kit.EditionOf(page) == "cluster"
			}, name)
		}
	})
}
