package suite

import (
	"bytes"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster"
)

// argoRollouts has the real controller of Argo Rollouts work on the cluster until the test's end.
func argoRollouts(t *testing.T) {
	t.Helper()
	c, err := cluster.Default()
	require.NoError(t, err)
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	program, definitions, err := c.ArgoRollouts(t.Context(), filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/cluster/build"), log)
	require.NoError(t, err)
	kubectl(t, "apply", "--server-side", "-k", definitions)
	require.Eventually(t, func() bool { _, err := command("kubectl", "-n", "shop", "get", "rollouts"); return err == nil }, 60*time.Second, 200*time.Millisecond)
	t.Cleanup(func() {
		kubectl(t, "delete", "-k", definitions, "--timeout=120s")
		managerKnows(t, false)
	})
	var out bytes.Buffer
	cmd := exec.Command(program, "--kubeconfig", os.Getenv("KUBECONFIG"), "--leader-elect=false", "--metricsPort=18190", "--healthzPort=18191")
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
}

func managerLog() string {
	out, _ := command("kubectl", "-n", "detour-system", "logs", "deployment/traffic-manager")
	return out
}

// managerKnows waits until the traffic-manager says that the cluster has Argo Rollouts, or no longer does.
func managerKnows(t *testing.T, installed bool) {
	t.Helper()
	said := ""
	assert.Eventually(t, func() bool {
		said = managerLog()
		return said != "" && installed == (strings.LastIndex(said, "installed=true") > strings.LastIndex(said, "installed=false"))
	}, 90*time.Second, 500*time.Millisecond)
	if t.Failed() {
		t.Fatal(said)
	}
}

// rollout reads a field of a Rollout.
func rollout(t *testing.T, name, field string) string {
	t.Helper()
	return kubectl(t, "-n", "shop", "get", "rollout", name, "-o", "jsonpath={"+field+"}")
}

func becomes(t *testing.T, name, phase string) {
	t.Helper()
	require.Eventually(t, func() bool { return rollout(t, name, ".status.phase") == phase }, 120*time.Second, 200*time.Millisecond, "%s is to be %s", name, phase)
}

// answersAs says whether a service is answered by who, which may take the nodes a moment to know.
func answersAs(service, who string) func() bool {
	return func() bool {
		page, err := get(&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, "http://"+service+".shop/")
		return err == nil && editionOf(page) == who
	}
}

// answeredBy requires that all of some requests are answered by who.
func answeredBy(t *testing.T, service, who string) {
	t.Helper()
	for range 20 {
		require.Equal(t, who, edition(t, "http://"+service+".shop/"), service)
	}
}

// Argo Rollouts that came after the traffic-manager are intercepted, replaced, scaled and released as other workloads are. None of it makes a
// release of its own: these have pauses that nobody would end.
func TestArgoRollout(t *testing.T) {
	if log := managerLog(); !strings.Contains(log, "installed=") {
		require.NotContains(t, log, "argoproj", "nothing is said of what is not there")
	}
	argoRollouts(t)
	manifest := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/rollout.yaml")
	kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kubectl(t, "delete", "-f", manifest, "--wait=false", "--ignore-not-found") })
	all := []string{"blue", "of-deployment", "web"}
	stable := map[string]string{}
	for _, name := range all {
		becomes(t, name, "Healthy")
		stable[name] = rollout(t, name, ".status.stableRS")
	}
	managerKnows(t, true)
	connected(t)
	port := laptopService(t)
	list := detour(t, "list", "-n", "shop")
	require.Regexp(t, `(?m)^web +80/http +rollout/web +yes, by targetPort`, list)
	require.Regexp(t, `(?m)^blue +80/http +rollout/blue +yes, by targetPort`, list)
	require.Regexp(t, `(?m)^of-deployment +80 +rollout/of-deployment +yes, by nftables`, list)
	require.NotContains(t, list, "deployment/template")
	require.Contains(t, refused(t, "intercept", "rollout/nothing", "--mode", "replace"), "rollout nothing does not exist")
	require.Contains(t, refused(t, "intercept", "deployment/template", "--mode", "replace"), "deployment/template has no pods, it is only the template of rollout/of-deployment: intercept that")

	var released string
	t.Run("at once", func(t *testing.T) {
		t.Run("canary", func(t *testing.T) {
			t.Parallel()
			template := rollout(t, "web", ".spec.template")
			stop := load(t, "http://web.shop/", false)
			require.Contains(t, detour(t, "intercept", "web", "--port", port), "of rollout/web -> 127.0.0.1:"+port)
			answeredBy(t, "web", "laptop")
			n, failures := stop()
			require.Empty(t, failures, "of %d requests: pods were evicted one by one", n)
			require.Equal(t, template, rollout(t, "web", ".spec.template"))
			require.Equal(t, stable["web"], rollout(t, "web", ".status.stableRS"))

			kubectl(t, "-n", "shop", "scale", "rollout/web", "--replicas=3")
			require.Eventually(t, func() bool {
				return kubectl(t, "-n", "shop", "get", "intercepts", "-o", `jsonpath={.items[?(@.spec.service=="web")].status.agents}`) == "3/3"
			}, 90*time.Second, 200*time.Millisecond, "agents 3/3")
			answeredBy(t, "web", "laptop")

			// A release meanwhile: its pods have the agent too.
			kubectl(t, "-n", "shop", "patch", "rollout", "web", "--type=merge", "-p", `{"spec":{"template":{"metadata":{"annotations":{"release":"2"}}}}}`)
			becomes(t, "web", "Paused") // half of the pods are of the release
			answeredBy(t, "web-canary", "laptop")
			answeredBy(t, "web", "laptop")
			detour(t, "leave", "web")
			answeredBy(t, "web", "cluster")
			kubectl(t, "-n", "shop", "delete", "rollout", "web", "--wait=false") // its restart would take its time
		})

		t.Run("template of a deployment", func(t *testing.T) {
			t.Parallel()
			pod := kubectl(t, "-n", "shop", "get", "pods", "-l", "app=of-deployment", "-o", "name")
			require.Contains(t, detour(t, "intercept", "rollout/of-deployment", "--mode", "ingest", "--", "sh", "-c", `echo "the colour is $COLOUR"`), "the colour is blue")
			require.Contains(t, detour(t, "intercept", "of-deployment", "--mode", "ingest", "--", "sh", "-c", `echo "the colour is $COLOUR"`), "the colour is blue")
			require.Equal(t, pod, kubectl(t, "-n", "shop", "get", "pods", "-l", "app=of-deployment", "-o", "name"), "nothing has changed in the cluster")
			template := kubectl(t, "-n", "shop", "get", "deployment/template", "-o", "jsonpath={.spec}")
			require.Contains(t, detour(t, "intercept", "of-deployment", "--port", port, "--mode", "replace"), "container app of rollout/of-deployment does not run")
			settled(t, "http://of-deployment.shop/")
			answeredBy(t, "of-deployment", "laptop")
			require.Empty(t, running(t, "of-deployment"))
			detour(t, "leave", "of-deployment")
			settled(t, "http://of-deployment.shop/")
			answeredBy(t, "of-deployment", "cluster")
			require.Len(t, running(t, "of-deployment"), 1)
			require.Contains(t, detour(t, "intercept", "of-deployment", "--port", port), "of rollout/of-deployment -> 127.0.0.1:"+port)
			settled(t, "http://of-deployment.shop/")
			answeredBy(t, "of-deployment", "laptop")
			require.Equal(t, template, kubectl(t, "-n", "shop", "get", "deployment/template", "-o", "jsonpath={.spec}"))
		})

		t.Run("blue and green", func(t *testing.T) {
			t.Parallel()
			require.Contains(t, detour(t, "intercept", "blue", "--port", port), "of rollout/blue -> 127.0.0.1:"+port)
			settled(t, "http://blue.shop/")
			answeredBy(t, "blue", "laptop")
			require.Equal(t, stable["blue"], rollout(t, "blue", ".status.stableRS"))

			// The release that is being looked at is not what is intercepted.
			kubectl(t, "-n", "shop", "patch", "rollout", "blue", "--type=merge", "-p", `{"spec":{"template":{"metadata":{"annotations":{"release":"2"}}}}}`)
			becomes(t, "blue", "Paused")
			require.Eventually(t, answersAs("blue-preview", "cluster"), patience, 100*time.Millisecond)
			answeredBy(t, "blue-preview", "cluster")
			answeredBy(t, "blue", "laptop")

			// As `kubectl argo rollouts promote` does it.
			kubectl(t, "-n", "shop", "patch", "rollout", "blue", "--subresource=status", "--type=merge", "-p", `{"status":{"pauseConditions":null}}`)
			becomes(t, "blue", "Healthy")
			require.NotEqual(t, stable["blue"], rollout(t, "blue", ".status.stableRS"))
			released = rollout(t, "blue", ".status.stableRS")
			require.Eventually(t, answersAs("blue-preview", "laptop"), patience, 100*time.Millisecond)
			settled(t, "http://blue.shop/")
			answeredBy(t, "blue", "laptop")
		})
	})
	stable["blue"] = released

	t.Run("uninstall", func(t *testing.T) {
		t.Cleanup(func() { detour(t, "install", "--image", managerImage) })
		require.Contains(t, detour(t, "uninstall"), "rollout/of-deployment")
		for _, name := range all[:2] {
			require.NotContains(t, rollout(t, name, ".metadata.annotations"), "detour.dev")
			require.Equal(t, stable[name], rollout(t, name, ".status.stableRS"), "no release")
		}
		for _, name := range all[:2] {
			require.Eventually(t, func() bool {
				page, _ := command("kubectl", "get", "--raw", "/api/v1/namespaces/shop/services/"+name+":80/proxy/")
				return editionOf(page) == "cluster"
			}, 60*time.Second, 200*time.Millisecond, name)
		}
	})
}
