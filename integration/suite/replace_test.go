package suite

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// queue is the queue of testdata/queue.yaml on the cluster, with its workers.
type queue struct{ t *testing.T }

func newQueue(t *testing.T) queue {
	file := kit.Testdata("queue.yaml")
	kit.Kubectl(t, "apply", "-f", file)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "-f", file, "--wait=false") })
	for _, name := range []string{"queue", "worker"} {
		kit.WaitForRollout(t, "shop", "deployment/"+name)
	}
	return queue{t}
}

// publish publishes messages until stop is called, which returns their number. It runs in the
// cluster, so that no tunnel matters.
func (q queue) publish() (stop func() int) {
	q.t.Helper()
	cmd := exec.Command("kubectl", "-n", "shop", "exec", "-i", "deployment/queue", "--", "/queue", "publish")
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	in, err := cmd.StdinPipe()
	require.NoError(q.t, err)
	require.NoError(q.t, cmd.Start())
	return func() int {
		require.NoError(q.t, in.Close())
		require.NoError(q.t, cmd.Wait(), errs.String())
		n, err := strconv.Atoi(strings.TrimSpace(out.String()))
		require.NoError(q.t, err)
		return n
	}
}

// done returns for each message the workers that did it.
func (q queue) done() map[string][]string {
	q.t.Helper()
	var all [][2]string
	require.NoError(q.t, json.Unmarshal([]byte(kit.Kubectl(q.t, "-n", "shop", "exec", "deployment/queue", "--",
		"/queue", "done")), &all))
	by := map[string][]string{}
	for _, m := range all {
		by[m[0]] = append(by[m[0]], m[1])
	}
	return by
}

// count returns how many messages a worker has done.
func (q queue) count(who string) int {
	n := 0
	for _, by := range q.done() {
		for _, w := range by {
			if w == who {
				n++
			}
		}
	}
	return n
}

func (q queue) eventually(what string, condition func() bool) {
	q.t.Helper()
	kit.Eventually(q.t, condition, what)
}

// workOnLaptop starts a worker on the laptop. stop ends it as a person would.
func workOnLaptop(t *testing.T) (stop func()) {
	t.Helper()
	var errs bytes.Buffer
	cmd := exec.Command("queue", "worker", "-server", "nats://queue.shop:4222", "-who", "laptop")
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return func() {
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.NoError(t, cmd.Wait(), errs.String())
	}
}

// A worker that takes messages from a queue is replaced, given back, and restored after the laptop
// has vanished. Every message is done exactly once: by the laptop alone while it replaces the
// worker, and by nobody from the moment the laptop vanishes until the worker is restored.
func TestReplaceQueueWorker(t *testing.T) {
	kit.Detour(t, "install", "--image", kit.ManagerImage, "--set", "sessionTTL=10s")
	t.Cleanup(func() { kit.Detour(t, "install", "--image", kit.ManagerImage, "--set", "sessionTTL=10m") })
	q := newQueue(t)
	kit.Connect(t)
	stop := q.publish()
	q.eventually("the cluster works", func() bool { return q.count("cluster") > 20 })

	require.Regexp(t, `(?m)^- +- +deployment/worker +with --mode replace`, kit.Detour(t, "list", "-n", "shop"))
	out := kit.Detour(t, "intercept", "worker", "--mode", "replace")
	require.Contains(t, out, "replaced: container worker of deployment/worker does not run (pods 2/2)")
	before := q.count("cluster")
	endWork := workOnLaptop(t)
	q.eventually("the laptop works", func() bool { return q.count("laptop") > 20 })
	require.Contains(t, kit.Kubectl(t, "-n", "shop", "get", "intercepts"), "Replace")
	require.Contains(t, kit.Detour(t, "status"), "mode replace: container worker does not run")
	kit.Kubectl(t, "-n", "shop", "scale", "deployment/worker", "--replicas=3")
	kit.WaitForRollout(t, "shop", "deployment/worker")
	require.Contains(t, kit.Kubectl(t, "-n", "shop", "logs", "deployment/worker"), "a laptop does its work")
	more := q.count("laptop") + 20
	q.eventually("the laptop goes on", func() bool { return q.count("laptop") > more })
	require.Equal(t, before, q.count("cluster"), "no worker of the cluster has done anything")

	require.Contains(t, kit.Detour(t, "leave", "worker"), "left: deployment/worker, its container worker runs again")
	endWork()
	q.eventually("the cluster works again", func() bool { return q.count("cluster") > before+20 })
	require.NotContains(t, kit.Kubectl(t, "-n", "shop", "get", "deployment/worker", "-o", "yaml"), "detour.dev",
		"the workload is as its owner wrote it")

	kit.Detour(t, "intercept", "deployment/worker", "--mode", "replace")
	before = q.count("cluster")
	require.NoError(t, syscall.Kill(kit.DaemonPID(t), syscall.SIGKILL))
	q.eventually("the intercept says so", func() bool {
		n := q.count("cluster")
		columns := kit.Kubectl(t, "-n", "shop", "get", "intercepts")
		if !strings.Contains(columns, "nobody does the replaced container's work") {
			return false
		}
		require.Equal(t, before, n, "nobody works while the session lives")
		return true
	})
	q.eventually("the cluster works after the session's end", func() bool { return q.count("cluster") > before+20 })

	kit.Connect(t)
	kit.Detour(t, "intercept", "worker", "--mode", "replace", "--ttl", "15s")
	before = q.count("cluster")
	q.eventually("the cluster works after the intercept's time", func() bool { return q.count("cluster") > before+20 })
	q.eventually("the intercept is gone", func() bool {
		return kit.Kubectl(t, "-n", "shop", "get", "intercepts", "-o",
			"name") == ""
	})

	n := stop()
	q.eventually("all is done", func() bool { return len(q.done()) == n })
	for message, by := range q.done() {
		require.Len(t, by, 1, "message %s was done by %v", message, by)
	}
	t.Logf("%d messages, %d of them done by the laptop", n, q.count("laptop"))
}

// A service's app is replaced together with its traffic. No request fails on the way there and
// back, and no pod answers a request meanwhile.
func TestReplaceService(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog), kit.Uses(kit.Machine))
	kit.RemoveAgent(t, "catalog")
	kit.Connect(t)
	port := kit.ServePage(t)
	require.Contains(t, kit.DetourFails(t, "intercept", "catalog", "--mode", "replace"), "catalog is also a service")
	require.Contains(t, kit.DetourFails(t, "intercept", "nothing", "--mode", "replace"),
		"there is no Deployment, StatefulSet or DaemonSet nothing")
	require.Contains(t, kit.DetourFails(t, "intercept", "catalog", "--port", port, "--mode", "replace", "--container",
		"web"), "it has no container web: it has catalog")
	end := kit.Load(t, "http://catalog.shop/", false)
	kit.Detour(t, "intercept", "catalog", "--port", port, "--mode", "replace")
	for range 20 {
		require.Equal(t, "laptop", kit.Edition(t, "http://catalog.shop/"))
	}
	require.Empty(t, kit.RunningPods(t, "catalog"))
	kit.Detour(t, "leave", "catalog")
	for range 20 {
		require.Equal(t, "cluster", kit.Edition(t, "http://catalog.shop/"))
	}
	n, failures := end()
	require.Empty(t, failures)
	require.Greater(t, n, 100)
}

// A pod that is made while no traffic-manager runs starts the app, because nobody can tell it that
// it is replaced. It is replaced as soon as a traffic-manager runs.
func TestReplaceWhileTheManagerIsAway(t *testing.T) {
	newQueue(t)
	kit.Connect(t)
	kit.Detour(t, "intercept", "worker", "--mode", "replace")
	t.Cleanup(func() { // all other tests need it, also if this one fails
		kit.Kubectl(t, "-n", "detour-system", "scale", "deployment/traffic-manager", "--replicas=1")
		kit.WaitForRollout(t, "detour-system", "deployment/traffic-manager")
	})
	kit.Kubectl(t, "-n", "detour-system", "scale", "deployment/traffic-manager", "--replicas=0")
	kit.Kubectl(t, "-n", "detour-system", "wait", "--for=delete", "pod", "-l", "app=traffic-manager", "--timeout=120s")
	require.Empty(t, kit.RunningPods(t, "worker"))
	// The pods of the rollout before may still be ending.
	pods := strings.Fields(kit.Pods(t, "worker", "{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}"))
	require.NotEmpty(t, pods)
	kit.Kubectl(t, "-n", "shop", "delete", "pod", pods[0])
	kit.Eventually(t, func() bool { return len(kit.RunningPods(t, "worker")) == 1 })
	kit.Kubectl(t, "-n", "detour-system", "scale", "deployment/traffic-manager", "--replicas=1")
	kit.Eventually(t, func() bool { return len(kit.RunningPods(t, "worker")) == 0 })
	kit.Eventually(t, func() bool { return strings.Contains(kit.Detour(t, "status"), "Active") })
	kit.Detour(t, "leave", "worker")
	require.Len(t, kit.RunningPods(t, "worker"), 2)
}
