package suite

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// queue is testdata/queue.yaml on the cluster.
type queue struct{ t *testing.T }

func newQueue(t *testing.T) queue {
	file := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/queue.yaml")
	kubectl(t, "apply", "-f", file)
	t.Cleanup(func() { kubectl(t, "delete", "-f", file, "--wait=false") })
	for _, name := range []string{"queue", "worker"} {
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/"+name, "--timeout=120s")
	}
	return queue{t}
}

// publish puts in messages until stop is called, which returns how many. It does so in the cluster, so that no tunnel matters.
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

// done says by whom each message was done.
func (q queue) done() map[string][]string {
	q.t.Helper()
	var all [][2]string
	require.NoError(q.t, json.Unmarshal([]byte(kubectl(q.t, "-n", "shop", "exec", "deployment/queue", "--", "/queue", "done")), &all))
	by := map[string][]string{}
	for _, m := range all {
		by[m[0]] = append(by[m[0]], m[1])
	}
	return by
}

// count is how many messages somebody has done.
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
	require.Eventually(q.t, condition, 90*time.Second, 500*time.Millisecond, what)
}

// workOnLaptop starts a worker that stop ends as a person does.
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

// A worker that takes its work from a queue is replaced, given back, and restored after the laptop vanished: every message is done exactly
// once, by the laptop alone while it replaces the worker, and by nobody after it vanished and before the worker is restored.
func TestReplaceQueueWorker(t *testing.T) {
	detour(t, "install", "--image", managerImage, "--set", "sessionTTL=10s")
	t.Cleanup(func() { detour(t, "install", "--image", managerImage, "--set", "sessionTTL=10m") })
	q := newQueue(t)
	connected(t)
	stop := q.publish()
	q.eventually("the cluster works", func() bool { return q.count("cluster") > 20 })

	require.Regexp(t, `(?m)^- +- +deployment/worker +with --mode replace`, detour(t, "list", "-n", "shop"))
	out := detour(t, "intercept", "worker", "--mode", "replace")
	require.Contains(t, out, "replaced: container worker of deployment/worker does not run (pods 2/2)")
	before := q.count("cluster")
	endWork := workOnLaptop(t)
	q.eventually("the laptop works", func() bool { return q.count("laptop") > 20 })
	require.Contains(t, kubectl(t, "-n", "shop", "get", "intercepts"), "Replace")
	require.Contains(t, detour(t, "status"), "mode replace: container worker does not run")
	kubectl(t, "-n", "shop", "scale", "deployment/worker", "--replicas=3")
	kubectl(t, "-n", "shop", "rollout", "status", "deployment/worker", "--timeout=120s")
	require.Contains(t, kubectl(t, "-n", "shop", "logs", "deployment/worker"), "a laptop does its work")
	more := q.count("laptop") + 20
	q.eventually("the laptop goes on", func() bool { return q.count("laptop") > more })
	require.Equal(t, before, q.count("cluster"), "no worker of the cluster has done anything")

	require.Contains(t, detour(t, "leave", "worker"), "left: deployment/worker, its container worker runs again")
	endWork()
	q.eventually("the cluster works again", func() bool { return q.count("cluster") > before+20 })
	require.NotContains(t, kubectl(t, "-n", "shop", "get", "deployment/worker", "-o", "yaml"), "detour.dev", "the workload is as its owner wrote it")

	detour(t, "intercept", "deployment/worker", "--mode", "replace")
	before = q.count("cluster")
	require.NoError(t, syscall.Kill(daemonPID(t), syscall.SIGKILL))
	q.eventually("the intercept says so", func() bool {
		n := q.count("cluster")
		columns := kubectl(t, "-n", "shop", "get", "intercepts")
		if !strings.Contains(columns, "nobody does the replaced container's work") {
			return false
		}
		require.Equal(t, before, n, "nobody works while the session lives")
		return true
	})
	q.eventually("the cluster works after the session's end", func() bool { return q.count("cluster") > before+20 })

	connected(t)
	detour(t, "intercept", "worker", "--mode", "replace", "--ttl", "15s")
	before = q.count("cluster")
	q.eventually("the cluster works after the intercept's time", func() bool { return q.count("cluster") > before+20 })
	q.eventually("the intercept is gone", func() bool { return kubectl(t, "-n", "shop", "get", "intercepts", "-o", "name") == "" })

	n := stop()
	q.eventually("all is done", func() bool { return len(q.done()) == n })
	for message, by := range q.done() {
		require.Len(t, by, 1, "message %s was done by %v", message, by)
	}
	t.Logf("%d messages, %d of them done by the laptop", n, q.count("laptop"))
}

// A service's app is replaced, with its traffic: no request fails on the way there and back, and none is answered by a pod meanwhile.
func TestReplaceService(t *testing.T) {
	t.Parallel()
	withoutAgent(t, "catalog")
	connected(t)
	port := laptopService(t)
	require.Contains(t, refused(t, "intercept", "catalog", "--mode", "replace"), "catalog is also a service")
	require.Contains(t, refused(t, "intercept", "nothing", "--mode", "replace"), "there is no Deployment, StatefulSet or DaemonSet nothing")
	require.Contains(t, refused(t, "intercept", "catalog", "--port", port, "--mode", "replace", "--container", "web"), "it has no container web: it has catalog")
	end := load(t, "http://catalog.shop/", false)
	detour(t, "intercept", "catalog", "--port", port, "--mode", "replace")
	for range 20 {
		require.Equal(t, "laptop", edition(t, "http://catalog.shop/"))
	}
	require.Empty(t, running(t, "catalog"))
	detour(t, "leave", "catalog")
	for range 20 {
		require.Equal(t, "cluster", edition(t, "http://catalog.shop/"))
	}
	n, failures := end()
	require.Empty(t, failures)
	require.Greater(t, n, 100)
}

// A pod that is made while no traffic-manager can tell that it is replaced runs the app; it is replaced as soon as there is one.
func TestReplaceWhileTheManagerIsAway(t *testing.T) {
	newQueue(t)
	connected(t)
	detour(t, "intercept", "worker", "--mode", "replace")
	t.Cleanup(func() { // all other tests need it, also when this one fails
		kubectl(t, "-n", "detour-system", "scale", "deployment/traffic-manager", "--replicas=1")
		kubectl(t, "-n", "detour-system", "rollout", "status", "deployment/traffic-manager", "--timeout=120s")
	})
	kubectl(t, "-n", "detour-system", "scale", "deployment/traffic-manager", "--replicas=0")
	kubectl(t, "-n", "detour-system", "wait", "--for=delete", "pod", "-l", "app=traffic-manager", "--timeout=120s")
	require.Empty(t, running(t, "worker"))
	pod := strings.Fields(kubectl(t, "-n", "shop", "get", "pods", "-l", "app=worker", "-o", "name"))[0]
	kubectl(t, "-n", "shop", "delete", pod)
	require.Eventually(t, func() bool { return len(running(t, "worker")) == 1 }, 30*time.Second, 500*time.Millisecond)
	kubectl(t, "-n", "detour-system", "scale", "deployment/traffic-manager", "--replicas=1")
	require.Eventually(t, func() bool { return len(running(t, "worker")) == 0 }, 90*time.Second, 500*time.Millisecond)
	require.Eventually(t, func() bool { return strings.Contains(detour(t, "status"), "Active") }, 60*time.Second, 500*time.Millisecond)
	detour(t, "leave", "worker")
	require.Len(t, running(t, "worker"), 2)
}

// running are the pods of an app in which it runs itself.
func running(t *testing.T, app string) []string {
	t.Helper()
	var list struct {
		Items []struct {
			Metadata struct{ Name string }
			Spec     struct{ Containers []struct{ Command []string } }
			Status   struct{ Phase string }
		}
	}
	require.NoError(t, json.Unmarshal([]byte(kubectl(t, "-n", "shop", "get", "pods", "-l", "app="+app, "-o", "json")), &list))
	var names []string
	for _, p := range list.Items {
		if p.Spec.Containers[0].Command[0] != "/traffic-agent" && p.Status.Phase != "Succeeded" && p.Status.Phase != "Failed" {
			names = append(names, p.Metadata.Name)
		}
	}
	return names
}
