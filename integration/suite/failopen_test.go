package suite

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// Whatever happens to alice's laptop, the cluster answers her requests again within a moment, and
// nobody else notices. She intercepts one service for herself, one as a whole, and one whose pods
// speak TLS.
func TestFailOpen(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Subject, kit.Web), kit.Uses(kit.Machine))
	kit.DeploySubject(t)
	directory, roots := kit.DeployWeb(t)
	alice := kit.NewLaptop(t)
	serve := func() (exit func()) {
		stop := alice.ServeSubject("alice")
		web := alice.Command(context.Background(), kit.Path("bin", "echo"), "-https=127.0.0.1:18443", "-certificates",
			directory, "-edition", "alice")
		require.NoError(t, web.Start())
		return sync.OnceFunc(func() { _ = web.Process.Kill(); _ = web.Wait(); stop() })
	}
	exits := serve()
	t.Cleanup(func() { exits() })
	kit.Connect(t)
	ones := []kit.Requester{
		kit.SubjectRequesters(t, "subject")(0), kit.SubjectRequesters(t, "whole")(0),
		kit.WebRequesters(t, roots)(0),
	}
	answered := func(c *assert.CollectT) {
		for _, one := range ones {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			got, err := one.Send(ctx, "alice")
			cancel()
			if assert.NoError(c, err, one.Kind) {
				assert.Equal(c, "alice", got, one.Kind)
			}
		}
	}
	t.Cleanup(func() {
		for _, one := range ones {
			one.Close()
		}
	})
	intercept := func(t *testing.T) {
		t.Helper()
		if out, err := alice.Try("status"); err == nil && out == "not connected" {
			out, err = alice.Try("connect", "-n", "shop")
			require.NoError(t, err, out)
		}
		var all sync.WaitGroup
		for _, args := range [][]string{
			{"whole", "--port", kit.LocalPort},
			{"subject", "--port", kit.LocalPort, "--header", "x-dev=alice"},
			{"web", "--port", "18443", "--header", "x-dev=alice", "--tls-secret", "web-tls"},
		} {
			all.Go(func() { // at once, for one rollout
				out, err := alice.Try(append([]string{"intercept", "-n", "shop"}, args...)...)
				assert.NoError(t, err, out)
			})
		}
		all.Wait()
		require.EventuallyWithT(t, answered, kit.Patience(t), 100*time.Millisecond)
	}
	load := func(t *testing.T) (check func(fault time.Time, recovery time.Duration)) {
		t.Helper()
		all := []*kit.Monitor{
			kit.StartMonitor(t, kit.SubjectRequesters(t, "subject"), "alice", ""),
			kit.StartMonitor(t, kit.SubjectRequesters(t, "whole"), "alice"),
			kit.StartMonitor(t, kit.WebRequesters(t, roots), "alice", ""),
		}
		for _, w := range all {
			kit.Eventually(t, w.Busy)
		}
		return func(fault time.Time, recovery time.Duration) {
			t.Helper()
			for _, w := range all {
				w.Cancel()
			}
			for _, w := range all {
				w.RequireFailOpen(t, fault, recovery)
			}
		}
	}
	back := func(t *testing.T) {
		t.Helper()
		require.EventuallyWithT(t, answered, kit.Patience(t), 100*time.Millisecond, "taken up again")
		for _, service := range []string{"subject", "whole", "web"} {
			out, err := alice.Try("leave", service)
			require.NoError(t, err, out)
		}
	}
	// A laptop that has lost its session to a fault cannot resume it, and its mark stays taken
	// until the session expires.
	forget := func(t *testing.T) {
		t.Helper()
		require.NotEmpty(t, kit.SessionsOf(t, alice.Name()))
		alice.DeleteSessions()
		kit.Eventually(t, func() bool {
			services := kit.Query(t, "shop", "intercepts", "{.items[*].spec.service}")
			return !slices.ContainsFunc(strings.Fields(services), func(s string) bool {
				return s == "subject" || s == "whole" || s == "web"
			})
		}, "alice's intercepts are gone")
	}

	t.Run("the daemon is stopped", func(t *testing.T) {
		intercept(t)
		pid := alice.DaemonPID()
		check := load(t)
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		defer func() { // also if the check fails, for the sake of the next fault
			require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
			back(t)
		}()
		fault := time.Now()
		time.Sleep(7 * time.Second) // longer than the traffic-manager takes to count a laptop as gone
		check(fault, 2*time.Second)
	})

	t.Run("the local process exits", func(t *testing.T) {
		intercept(t)
		check := load(t)
		exits()
		defer func() {
			exits = serve()
			back(t)
		}()
		known := time.Now().Add(500 * time.Millisecond) // until then a request may be on its way already
		time.Sleep(1500 * time.Millisecond)
		check(known, 0)
	})

	t.Run("the daemon is killed", func(t *testing.T) {
		intercept(t)
		check := load(t)
		require.NoError(t, syscall.Kill(alice.DaemonPID(), syscall.SIGKILL))
		defer forget(t)
		fault := time.Now()
		time.Sleep(3 * time.Second)
		check(fault, 2*time.Second)
	})

	t.Run("the network is cut", func(t *testing.T) {
		intercept(t)
		check := load(t)
		out, err := alice.Command(t.Context(), "ip", "link", "set", "eth0", "down").CombinedOutput()
		require.NoError(t, err, string(out))
		fault := time.Now()
		time.Sleep(3 * time.Second)
		check(fault, 2*time.Second)
		forget(t)
		// else it would try for a while to end its session
		require.NoError(t, syscall.Kill(alice.DaemonPID(), syscall.SIGKILL))
	})
}

// When agents are killed, for example because memory runs out, only the requests that go through
// them at that moment are lost. New connections wait for the next agent, and the intercept goes on.
func TestKilledAgent(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog))
	alice := kit.NewCatalogLaptop(t, "alice")
	client := kit.NodeTransports(t, "catalog")
	alice.Detour("connect", "-n", "shop")
	alice.Detour("intercept", "catalog", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	agents := func() []int { return kit.PodProcesses(t, "catalog", "/traffic-agent", "agent") }
	kit.Eventually(t, func() bool {
		return kit.Query(t, "shop", "pods -l app=catalog", "{.items[*].metadata.deletionTimestamp}") == ""
	}, "pods of earlier rollouts and tests end, with their agents")
	before := agents()
	require.NotEmpty(t, before)
	t.Log("agents:", kit.ResidentMemory(t, before), "keepers:",
		kit.ResidentMemory(t, kit.Processes(t, "/traffic-keeper")))
	restarts := func() []string {
		return strings.Split(kit.Query(t, "shop", "pods -l app=catalog",
			`{range .items[*]}{.metadata.name} {.status.initContainerStatuses[*].restartCount}{"\n"}{end}`), "\n")
	}
	pods := restarts()

	w := kit.MonitorCatalog(t, client, "alice", "")
	time.Sleep(time.Second)
	for _, pid := range before {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	fault := time.Now() // requests that are sent from now on count
	back := &http.Client{Transport: client(0)}
	kit.Eventually(t, func() bool { got, err := kit.AskCatalog(back, "alice"); return err == nil && got == "alice" },
		"the laptop gets its requests again")
	t.Log("the laptop has its requests back after", time.Since(fault).Round(10*time.Millisecond))
	time.Sleep(time.Second)
	var wrong []string
	cut := 0
	answers := w.Stop()
	for _, a := range answers {
		switch {
		case a.Failed && a.Sent.Before(fault):
			cut++ // it was in flight
		case a.Failed, a.Mark == "" && a.Edition != "cluster":
			wrong = append(wrong, fmt.Sprintf("%q, %s after the kill: %s", a.Mark, a.Sent.Sub(fault), a.Edition))
		}
	}
	require.Empty(t, wrong, "of %d requests", len(answers))
	t.Logf("%d requests, %d of them cut while they went through an agent", len(answers), cut)
	require.LessOrEqual(t, cut, 8, "as many as there are clients")
	require.Len(t, agents(), len(before), "each agent was started again")
	require.Subset(t, pods, restarts(), "no container was")

	t.Run("with its container", func(t *testing.T) {
		var uid string
		var restarted int
		_, err := fmt.Sscan(kit.Query(t, "shop", "pods -l app=catalog",
			"{.items[0].metadata.uid} {.items[0].status.initContainerStatuses[0].restartCount}"), &uid, &restarted)
		require.NoError(t, err)
		for _, pid := range kit.Processes(t, "/traffic-keeper") {
			group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
			if err == nil && strings.Contains(string(group), uid) {
				require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			}
		}
		// The pod refuses connections until the kubelet has restarted the container, or until the
		// service no longer includes the pod.
		killed := time.Now()
		kit.Eventually(t, func() bool {
			pods := kit.Query(t, "shop", "pods -l app=catalog",
				`{range .items[*]}{.metadata.uid} {.status.initContainerStatuses[*].restartCount} `+
					`{.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
			again := fmt.Sprintf("%s %d True", uid, restarted+1)
			return strings.Contains(pods, again) && !strings.Contains(pods, "False")
		})
		t.Log("the pod is ready again after", time.Since(killed).Round(100*time.Millisecond))
		fresh := func() error {
			for i := range 30 {
				who := []string{"alice", ""}[i%2]
				one := &http.Client{Transport: client(0)}
				if got, err := kit.AskCatalog(one, who); err != nil || (got == "alice") != (who == "alice") {
					return fmt.Errorf("%q: %q %w", who, got, err)
				}
			}
			return nil
		}
		kit.Eventually(t, func() bool { return fresh() == nil }, "every pod answers, and gives alice hers")
		require.NoError(t, fresh())
	})
	alice.Detour("leave", "catalog")
}

// The traffic-manager is deleted or killed. No request of anybody else fails. The cluster answers
// the laptop's requests within a moment, and the laptop answers them again when the next
// traffic-manager runs. A request that the laptop is serving is lost if it must not be sent twice.
// A traffic-manager that cannot reach the API server waits, and the laptop keeps its requests.
func TestManagerEndsUnderLoad(t *testing.T) {
	kit.DeploySubject(t)
	alice := kit.NewLaptop(t)
	alice.ServeSubject("alice")
	asks := kit.SubjectRequestersOver(t, "subject", kit.NodeDialer(t, "subject"))
	alice.Detour("connect", "-n", "shop")
	alice.Detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	one := asks(0)
	defer one.Close()
	back := func() bool { return one.AnsweredBy("alice") }
	kit.Eventually(t, back)
	manager := func() []int { return kit.Processes(t, "/traffic", "manager") }
	for _, fault := range []struct {
		name   string
		happen func(pid int)
	}{
		{"killed", func(pid int) { require.NoError(t, syscall.Kill(pid, syscall.SIGKILL)) }},
		{"deleted", func(int) {
			kit.Kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager", "--wait=false")
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			old := manager()
			require.Len(t, old, 1)
			w := kit.StartMonitor(t, asks, "alice", "")
			kit.Eventually(t, w.Busy)
			at := time.Now()
			fault.happen(old[0])
			kit.Eventually(t, func() bool { return !slices.Contains(manager(), old[0]) })
			gone := time.Now() // requests that are sent from now on count
			kit.Eventually(t, func() bool { now := manager(); return len(now) == 1 && now[0] != old[0] },
				"the next manager runs")
			runs := time.Since(at)
			kit.Eventually(t, back, "the laptop gets its requests again")
			t.Log("the next manager runs after", runs.Round(10*time.Millisecond),
				"and the laptop has its requests back after", time.Since(at).Round(10*time.Millisecond))
			var wrong []string
			cut, app := 0, 0
			var longest time.Duration
			answers := w.Stop()
			for _, a := range answers {
				late := a.Sent.Sub(gone)
				if a.Sent.After(at) {
					longest = max(longest, a.Took)
				}
				switch {
				case late > 0 && a.Took > max(2*time.Second-late, 0)+kit.ResponseLimit:
					wrong = append(wrong, fmt.Sprintf("%s of %q, %s after the fault: waited for %s", a.Kind, a.Mark,
						late, a.Took))
				case !a.Failed && a.Mark == "alice" && a.Edition == "cluster":
					app++
				case !a.Failed && a.Edition == map[string]string{"alice": "alice", "": "cluster"}[a.Mark]:
				case a.Failed && a.Mark == "alice" && late < 0 && !strings.HasSuffix(a.Kind, http.MethodGet):
					cut++ // the laptop was serving it when the tunnel broke
				default:
					wrong = append(wrong, fmt.Sprintf("%s of %q, %s after the fault, which took %s: %s", a.Kind, a.Mark,
						late, a.Took, a.Edition))
				}
			}
			t.Logf("%d requests, the app answered %d of alice's, %d were cut on their way to the laptop; "+
				"the longest took %s", len(answers), app, cut, longest.Round(time.Millisecond))
			require.Empty(t, wrong, "of %d requests", len(answers))
			require.NotZero(t, app)
		})
	}

	t.Run("the API server is starved", func(t *testing.T) {
		server, err := kit.Run("pgrep", "-x", "kube-apiserver")
		require.NoError(t, err, server)
		old := manager()
		out, err := kit.Run("kill", "-STOP", server)
		require.NoError(t, err, out)
		time.Sleep(8 * time.Second)
		out, err = kit.Run("kill", "-CONT", server)
		require.NoError(t, err, out)
		kit.Eventually(t, back)
		require.Equal(t, old, manager(), "it waits for the API server")
	})
	alice.Detour("leave", "subject")

	t.Run("the app must not answer", func(t *testing.T) {
		alice.Detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "--on-failure", "error",
			"-n", "shop")
		kit.Eventually(t, back)
		old := manager()
		w := kit.StartMonitor(t, asks, "alice")
		require.NoError(t, syscall.Kill(old[0], syscall.SIGKILL))
		kit.Eventually(t, func() bool { now := manager(); return len(now) == 1 && now[0] != old[0] })
		kit.Eventually(t, back, "the laptop gets its requests again")
		for _, a := range w.Stop() {
			require.NotEqual(t, "cluster", a.Edition)
		}
		alice.Detour("leave", "subject")
	})
}
