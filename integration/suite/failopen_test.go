package suite

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	testpb "google.golang.org/grpc/interop/grpc_testing"

	"github.com/detour-dev/detour/integration/cluster/laptop"
)

// watched asks as a developer and as nobody until stop is called, and notes who answered when.
type watched struct {
	stop    context.CancelFunc
	done    sync.WaitGroup
	mu      sync.Mutex
	answers []answered
	asking  int // how many do
}

type answered struct {
	asked time.Time
	took  time.Duration
	kind  string
	who   string // whose mark the request had
	got   string // which edition answered, or the error
	err   bool
}

// asker asks with the mark of a developer, and says whose copy of the service answered.
type asker struct {
	kind string
	ask  func(ctx context.Context, who string) (string, error)
	end  func()
}

// says tells whether alice's requests are answered by somebody now.
func (a asker) says(who string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	got, err := a.ask(ctx, "alice")
	return err == nil && got == who
}

func watch(t *testing.T, askers func(i int) asker, marks ...string) *watched {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	w := &watched{stop: cancel}
	for _, who := range marks {
		for i := range 4 {
			ask := askers(i)
			w.asking++
			w.done.Go(func() {
				defer ask.end()
				for ctx.Err() == nil {
					asking, cancel := context.WithTimeout(context.Background(), 10*time.Second)
					a := answered{asked: time.Now(), kind: ask.kind, who: who}
					got, err := ask.ask(asking, who)
					cancel()
					a.took = time.Since(a.asked)
					a.got, a.err = got, err != nil
					if err != nil {
						a.got = err.Error()
					}
					w.mu.Lock()
					w.answers = append(w.answers, a)
					w.mu.Unlock()
					time.Sleep(10 * time.Millisecond)
				}
			})
		}
	}
	return w
}

// watchWith asks the catalog through transports of its caller's, of which each has a number.
func watchWith(t *testing.T, transport func(int) *http.Transport, marks ...string) *watched {
	t.Helper()
	return watch(t, func(i int) asker {
		client := &http.Client{Transport: transport(i)}
		return asker{"GET", func(_ context.Context, who string) (string, error) { return askAs(client, who) }, client.CloseIdleConnections}
	}, marks...)
}

// kinds ask a service of the subject on connections that they keep, each in another way: what a client may repeat, and what it may not.
func kinds(t *testing.T, service string) func(i int) asker {
	return kindsOver(t, service, new(net.Dialer).DialContext)
}

type dialer func(ctx context.Context, network, address string) (net.Conn, error)

func kindsOver(t *testing.T, service string, dial dialer) func(i int) asker {
	return func(i int) asker {
		if i%4 == 3 {
			conn, err := grpc.NewClient("passthrough:///"+service+".shop:80", grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) { return dial(ctx, "tcp", address) }))
			require.NoError(t, err)
			return asker{service + " gRPC", unary(testpb.NewTestServiceClient(conn)), func() { _ = conn.Close() }}
		}
		protocols := new(http.Protocols)
		protocols.SetHTTP1(i%4 != 2)
		protocols.SetUnencryptedHTTP2(i%4 == 2)
		transport := &http.Transport{MaxIdleConnsPerHost: 1, Protocols: protocols, DialContext: dial}
		if i%4 == 0 {
			return overHTTP(transport, service, http.MethodGet, 0)
		}
		return overHTTP(transport, service, http.MethodPost, 1000)
	}
}

// overTLS ask the service web.
func overTLS(t *testing.T, roots *x509.CertPool) func(i int) asker {
	return func(i int) asker {
		version := []string{"HTTP/1.1", "HTTP/2.0"}[i%2]
		client := secureClients(t, roots)[version]
		return asker{"web " + version, func(_ context.Context, who string) (string, error) {
			page, err := askSecure(client, who)
			if err != nil {
				return "", err
			}
			var said struct{ Edition, Body string }
			if err := json.Unmarshal([]byte(page), &said); err != nil || said.Body != "body" {
				return "", fmt.Errorf("answered %q: %w", page, err)
			}
			return said.Edition, nil
		}, client.CloseIdleConnections}
	}
}

// overHTTP asks a service of the subject with so large a body.
func overHTTP(transport *http.Transport, service, method string, size int) asker {
	client := &http.Client{Transport: transport}
	return asker{fmt.Sprint(service, " ", transport.Protocols, " ", method), func(ctx context.Context, who string) (string, error) {
		ctx, reached := traced(ctx)
		r, err := http.NewRequestWithContext(ctx, method, "http://"+service+".shop/", strings.NewReader(strings.Repeat("x", size)))
		if err != nil {
			return "", err
		}
		r.Header.Set("x-dev", who)
		answer, err := client.Do(r)
		if err != nil {
			return "", fmt.Errorf("%w (reached %s)", err, reached())
		}
		defer answer.Body.Close()
		page, err := io.ReadAll(answer.Body)
		if err != nil {
			return "", err
		}
		by, what, _ := strings.Cut(string(page), " ")
		if !strings.HasSuffix(what, fmt.Sprintf(" %s / %d\n", method, size)) {
			return "", fmt.Errorf("%s: %q", answer.Status, page)
		}
		return by, nil
	}, client.CloseIdleConnections}
}

// busy says whether those who ask are at it.
func (w *watched) busy() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.answers) > 20*w.asking
}

// ended stops the watch and returns what it has noted.
func (w *watched) ended() []answered {
	w.stop()
	w.done.Wait()
	return w.answers
}

// waits is how long a request may wait for an answer on a machine that has much else to do.
const waits = 2 * time.Second

// check ends the watch. Requests without a mark never fail; those of alice may fail when they were under way on her laptop at the fault,
// are answered by her laptop or the cluster, and only by the cluster, and without waiting for the laptop, from settled on.
func (w *watched) check(t *testing.T, fault time.Time, settled time.Duration) {
	t.Helper()
	var wrong []string
	asked := map[string]int{}
	var longest time.Duration
	for _, a := range w.ended() {
		late := a.asked.Sub(fault)
		if late > 0 {
			asked[a.kind]++
			longest = max(longest, a.took)
		}
		switch {
		case a.who == "" && a.got == "cluster":
		case a.who == "" || (a.err && late > 0):
			wrong = append(wrong, fmt.Sprintf("%s of %q, %s after the fault, which took %s: %s", a.kind, a.who, late, a.took, a.got))
		case !a.err && late > settled && a.got != "cluster":
			wrong = append(wrong, fmt.Sprintf("%s of %q, %s after the fault: still %s", a.kind, a.who, late, a.got))
		case late > 0 && a.took > max(settled-late, 0)+waits:
			wrong = append(wrong, fmt.Sprintf("%s of %q, %s after the fault: waited for %s", a.kind, a.who, late, a.took))
		}
	}
	t.Logf("asked after the fault: %v, the longest took %s", asked, longest.Round(time.Millisecond))
	require.Empty(t, wrong, "of %d requests", len(w.answers))
	require.NotEmpty(t, asked)
}

// Whatever becomes of alice's laptop: her requests are the cluster's again within a moment, and nobody else's notice. One service she intercepts for
// herself, one as a whole, and one whose pods speak TLS.
func TestFailOpen(t *testing.T) {
	withSubject(t)
	directory, roots := secureService(t)
	alice := newIdleDeveloper(t, 0)
	serve := func() (exit func()) {
		stop := alice.subject("alice")
		web := alice.Command(context.Background(), filepath.Join(os.Getenv("DETOUR_ROOT"), "bin", "echo"), "-https=127.0.0.1:18443", "-certificates", directory, "-edition", "alice")
		require.NoError(t, web.Start())
		return sync.OnceFunc(func() { _ = web.Process.Kill(); _ = web.Wait(); stop() })
	}
	exits := serve()
	t.Cleanup(func() { exits() })
	connected(t)
	ones := []asker{kinds(t, "subject")(0), kinds(t, "whole")(0), overTLS(t, roots)(0)}
	answered := func(c *assert.CollectT) {
		for _, one := range ones {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			got, err := one.ask(ctx, "alice")
			cancel()
			if assert.NoError(c, err, one.kind) {
				assert.Equal(c, "alice", got, one.kind)
			}
		}
	}
	t.Cleanup(func() {
		for _, one := range ones {
			one.end()
		}
	})
	intercept := func(t *testing.T) {
		t.Helper()
		if out, err := alice.try("status"); err == nil && out == "not connected" {
			out, err = alice.try("connect", "-n", "shop")
			require.NoError(t, err, out)
		}
		var all sync.WaitGroup
		for _, args := range [][]string{{"whole", "--port", "18080"}, {"subject", "--port", "18080", "--header", "x-dev=alice"}, {"web", "--port", "18443", "--header", "x-dev=alice", "--tls-secret", "web-tls"}} {
			all.Go(func() { // at once, for one rollout
				out, err := alice.try(append([]string{"intercept", "-n", "shop"}, args...)...)
				assert.NoError(t, err, out)
			})
		}
		all.Wait()
		require.EventuallyWithT(t, answered, patience, 100*time.Millisecond)
	}
	load := func(t *testing.T) (check func(fault time.Time, settled time.Duration)) {
		t.Helper()
		all := []*watched{watch(t, kinds(t, "subject"), "alice", ""), watch(t, kinds(t, "whole"), "alice"), watch(t, overTLS(t, roots), "alice", "")}
		for _, w := range all {
			require.Eventually(t, w.busy, patience, 10*time.Millisecond)
		}
		return func(fault time.Time, settled time.Duration) {
			t.Helper()
			for _, w := range all {
				w.stop()
			}
			for _, w := range all {
				w.check(t, fault, settled)
			}
		}
	}
	back := func(t *testing.T) {
		t.Helper()
		require.EventuallyWithT(t, answered, patience, 100*time.Millisecond, "taken up again")
		for _, service := range []string{"subject", "whole", "web"} {
			out, err := alice.try("leave", service)
			require.NoError(t, err, out)
		}
	}
	// A laptop that has lost its session to a fault can no longer take it back, and its mark would be held until the session's time is over.
	forget := func(t *testing.T) {
		t.Helper()
		session := kubectl(t, "-n", "shop", "get", "intercepts", "-o", "jsonpath={.items[0].metadata.ownerReferences[0].name}")
		kubectl(t, "-n", "shop", "delete", "session", session)
		require.Eventually(t, func() bool { return kubectl(t, "-n", "shop", "get", "intercepts", "-o", "name") == "" }, 30*time.Second, 200*time.Millisecond)
	}

	t.Run("the daemon is stopped", func(t *testing.T) {
		intercept(t)
		pid := alice.daemonPID()
		check := load(t)
		require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
		defer func() { // for the next fault too when this one's check fails
			require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
			back(t)
		}()
		fault := time.Now()
		time.Sleep(7 * time.Second) // longer than it takes the traffic-manager to count a laptop as gone
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
		known := time.Now().Add(500 * time.Millisecond) // until then a request may cross the news
		time.Sleep(1500 * time.Millisecond)
		check(known, 0)
	})

	t.Run("the daemon is killed", func(t *testing.T) {
		intercept(t)
		check := load(t)
		require.NoError(t, syscall.Kill(alice.daemonPID(), syscall.SIGKILL))
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
		require.NoError(t, syscall.Kill(alice.daemonPID(), syscall.SIGKILL)) // it would try for a while to say that it leaves
	})
}

// outside makes transports of a client that reaches a service by a plain route to a node, half of which keep their connections.
func outside(t *testing.T, service string) func(int) *http.Transport {
	t.Helper()
	dial := plainRoute(t, service)
	return func(i int) *http.Transport {
		return &http.Transport{MaxIdleConnsPerHost: 1, DisableKeepAlives: i%2 == 0, DialContext: dial}
	}
}

// plainRoute dials a service, whatever its address is called, from a machine that has a route to a node.
func plainRoute(t *testing.T, service string) dialer {
	t.Helper()
	l, err := laptop.New(t.Context(), 3)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	address := kubectl(t, "-n", "shop", "get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
	addresses := strings.Fields(kubectl(t, "get", "nodes", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`))
	require.NotEmpty(t, addresses)
	out, err := l.Command(t.Context(), "ip", "route", "add", address, "via", addresses[0]).CombinedOutput()
	require.NoError(t, err, string(out))
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return l.DialContext(ctx, network, net.JoinHostPort(address, "80"))
	}
}

// processes are those whose command line begins so.
func processes(t *testing.T, command ...string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err != nil || !strings.HasPrefix(string(line), strings.Join(command, "\x00")+"\x00") {
			continue
		}
		var pid int
		_, err = fmt.Sscanf(path, "/proc/%d/", &pid)
		require.NoError(t, err)
		pids = append(pids, pid)
	}
	return pids
}

// resident is the memory of processes, as the kernel tells it.
func resident(t *testing.T, pids []int) (all []string) {
	t.Helper()
	for _, pid := range pids {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		require.NoError(t, err)
		_, rest, _ := strings.Cut(string(status), "VmRSS:")
		size, _, _ := strings.Cut(rest, "\n")
		all = append(all, strings.TrimSpace(size))
	}
	return all
}

// Agents that are killed, as for want of memory, cost the requests that go through them at that moment and no other: new connections wait
// for the next agent, and the intercept goes on.
func TestKilledAgent(t *testing.T) {
	alice := newDeveloper(t, "alice")
	client := outside(t, "catalog")
	alice.detour("connect", "-n", "shop")
	alice.detour("intercept", "catalog", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	agents := func() []int { return processes(t, "/traffic-agent", "agent") }
	require.Eventually(t, func() bool {
		return kubectl(t, "-n", "shop", "get", "pods", "-o", "jsonpath={.items[*].metadata.deletionTimestamp}") == ""
	}, 2*patience, 200*time.Millisecond, "pods of earlier rollouts and tests end, with their agents")
	before := agents()
	require.NotEmpty(t, before)
	t.Log("agents:", resident(t, before), "keepers:", resident(t, processes(t, "/traffic-keeper")))
	restarts := func() []string {
		return strings.Split(kubectl(t, "-n", "shop", "get", "pods", "-l", "app=catalog", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.initContainerStatuses[*].restartCount}{"\n"}{end}`), "\n")
	}
	pods := restarts()

	w := watchWith(t, client, "alice", "")
	time.Sleep(time.Second)
	for _, pid := range before {
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	fault := time.Now() // from now on
	back := &http.Client{Transport: client(0)}
	require.Eventually(t, func() bool { got, err := askAs(back, "alice"); return err == nil && got == "alice" }, patience, 50*time.Millisecond, "the laptop gets its requests again")
	t.Log("the laptop has its requests back after", time.Since(fault).Round(10*time.Millisecond))
	time.Sleep(time.Second)
	var wrong []string
	cut := 0
	answers := w.ended()
	for _, a := range answers {
		switch {
		case a.err && a.asked.Before(fault):
			cut++ // it was under way
		case a.err, a.who == "" && a.got != "cluster":
			wrong = append(wrong, fmt.Sprintf("%q, %s after the kill: %s", a.who, a.asked.Sub(fault), a.got))
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
		_, err := fmt.Sscan(kubectl(t, "-n", "shop", "get", "pods", "-l", "app=catalog", "-o", "jsonpath={.items[0].metadata.uid} {.items[0].status.initContainerStatuses[0].restartCount}"), &uid, &restarted)
		require.NoError(t, err)
		for _, pid := range processes(t, "/traffic-keeper") {
			if group, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err == nil && strings.Contains(string(group), uid) {
				require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
			}
		}
		// Its pod refuses connections until the kubelet has started it again, or the service leads past it.
		killed := time.Now()
		require.Eventually(t, func() bool {
			pods := kubectl(t, "-n", "shop", "get", "pods", "-l", "app=catalog", "-o", `jsonpath={range .items[*]}{.metadata.uid} {.status.initContainerStatuses[*].restartCount} {.status.conditions[?(@.type=="Ready")].status}{"\n"}{end}`)
			return strings.Contains(pods, fmt.Sprintf("%s %d True", uid, restarted+1)) && !strings.Contains(pods, "False")
		}, 60*time.Second, 100*time.Millisecond)
		t.Log("the pod is ready again after", time.Since(killed).Round(100*time.Millisecond))
		fresh := func() error {
			for i := range 30 {
				who := []string{"alice", ""}[i%2]
				one := &http.Client{Transport: client(0)}
				if got, err := askAs(one, who); err != nil || (got == "alice") != (who == "alice") {
					return fmt.Errorf("%q: %q %w", who, got, err)
				}
			}
			return nil
		}
		require.Eventually(t, func() bool { return fresh() == nil }, 30*time.Second, 100*time.Millisecond, "every pod answers, and gives alice hers")
		require.NoError(t, fresh())
	})
	alice.detour("leave", "catalog")
}

// A manager that is deleted or killed: nobody else's request fails, the laptop's are the cluster's within a moment, and the laptop's again when
// the next manager is there. What was under way on the laptop is lost where it must not be asked twice. One that cannot reach the API server waits, and the laptop keeps its requests.
func TestManagerEndsUnderLoad(t *testing.T) {
	withSubject(t)
	alice := newIdleDeveloper(t, 0)
	alice.subject("alice")
	asks := kindsOver(t, "subject", plainRoute(t, "subject"))
	alice.detour("connect", "-n", "shop")
	alice.detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	one := asks(0)
	defer one.end()
	back := func() bool { return one.says("alice") }
	require.Eventually(t, back, patience, 50*time.Millisecond)
	manager := func() []int { return processes(t, "/traffic", "manager") }
	for _, fault := range []struct {
		name   string
		happen func(pid int)
	}{
		{"killed", func(pid int) { require.NoError(t, syscall.Kill(pid, syscall.SIGKILL)) }},
		{"deleted", func(int) {
			kubectl(t, "-n", "detour-system", "delete", "pod", "-l", "app=traffic-manager", "--wait=false")
		}},
	} {
		t.Run(fault.name, func(t *testing.T) {
			old := manager()
			require.Len(t, old, 1)
			w := watch(t, asks, "alice", "")
			require.Eventually(t, w.busy, patience, 10*time.Millisecond)
			at := time.Now()
			fault.happen(old[0])
			require.Eventually(t, func() bool { return !slices.Contains(manager(), old[0]) }, 60*time.Second, 10*time.Millisecond)
			gone := time.Now() // from now on
			require.Eventually(t, func() bool { now := manager(); return len(now) == 1 && now[0] != old[0] }, 60*time.Second, 50*time.Millisecond, "the next manager runs")
			runs := time.Since(at)
			require.Eventually(t, back, 60*time.Second, 50*time.Millisecond, "the laptop gets its requests again")
			t.Log("the next manager runs after", runs.Round(10*time.Millisecond), "and the laptop has its requests back after", time.Since(at).Round(10*time.Millisecond))
			var wrong []string
			cut, app := 0, 0
			var longest time.Duration
			answers := w.ended()
			for _, a := range answers {
				late := a.asked.Sub(gone)
				if a.asked.After(at) {
					longest = max(longest, a.took)
				}
				switch {
				case late > 0 && a.took > max(2*time.Second-late, 0)+waits:
					wrong = append(wrong, fmt.Sprintf("%s of %q, %s after the fault: waited for %s", a.kind, a.who, late, a.took))
				case !a.err && a.who == "alice" && a.got == "cluster":
					app++
				case !a.err && a.got == map[string]string{"alice": "alice", "": "cluster"}[a.who]:
				case a.err && a.who == "alice" && late < 0 && !strings.HasSuffix(a.kind, http.MethodGet):
					cut++ // it was under way on the laptop when the tunnel broke
				default:
					wrong = append(wrong, fmt.Sprintf("%s of %q, %s after the fault, which took %s: %s", a.kind, a.who, late, a.took, a.got))
				}
			}
			t.Logf("%d requests, %d of alice's answered by the app, %d cut on their way to the laptop; the longest took %s", len(answers), app, cut, longest.Round(time.Millisecond))
			require.Empty(t, wrong, "of %d requests", len(answers))
			require.NotZero(t, app)
		})
	}

	t.Run("the API server is starved", func(t *testing.T) {
		server, err := command("pgrep", "-x", "kube-apiserver")
		require.NoError(t, err, server)
		old := manager()
		out, err := command("kill", "-STOP", server)
		require.NoError(t, err, out)
		time.Sleep(8 * time.Second)
		out, err = command("kill", "-CONT", server)
		require.NoError(t, err, out)
		require.Eventually(t, back, 30*time.Second, 50*time.Millisecond)
		require.Equal(t, old, manager(), "it waits for the API server")
	})
	alice.detour("leave", "subject")

	t.Run("the app must not answer", func(t *testing.T) {
		alice.detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "--on-failure", "error", "-n", "shop")
		require.Eventually(t, back, 30*time.Second, 50*time.Millisecond)
		old := manager()
		w := watch(t, asks, "alice")
		require.NoError(t, syscall.Kill(old[0], syscall.SIGKILL))
		require.Eventually(t, func() bool { now := manager(); return len(now) == 1 && now[0] != old[0] }, 60*time.Second, 50*time.Millisecond)
		require.Eventually(t, back, 60*time.Second, 50*time.Millisecond, "the laptop gets its requests again")
		for _, a := range w.ended() {
			require.NotEqual(t, "cluster", a.got)
		}
		alice.detour("leave", "subject")
	})
}
