package suite

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster/laptop"
)

// developerLaptop is a laptop with a catalog of its own, whose edition is the developer's name.
type developerLaptop struct {
	*laptop.Laptop
	t       *testing.T
	config  string
	service *exec.Cmd
}

func newDeveloper(t *testing.T, i int, name string) *developerLaptop {
	t.Helper()
	d := newIdleDeveloper(t, i)
	d.serve(name)
	return d
}

// serve runs the developer's catalog.
func (d *developerLaptop) serve(name string) {
	d.t.Helper()
	service := d.Command(context.Background(), filepath.Join(os.Getenv("DETOUR_ROOT"), "bin", "catalog"))
	service.Env = append(service.Env, "EDITION="+name, "LISTEN=127.0.0.1:18080")
	require.NoError(d.t, service.Start())
	d.t.Cleanup(func() { _ = service.Process.Kill(); _ = service.Wait() })
	d.service = service
}

// newIdleDeveloper is a laptop on which nothing runs yet.
func newIdleDeveloper(t *testing.T, i int) *developerLaptop {
	t.Helper()
	l, err := laptop.New(t.Context(), i)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	d := &developerLaptop{Laptop: l, t: t}
	d.config, err = l.Kubeconfig("")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, _ = d.try("quit")
		kubectl(t, "-n", "shop", "delete", "sessions", "--all") // of a laptop that vanished
	})
	return d
}

// count serves HTTP on the laptop and counts the requests.
func (d *developerLaptop) count(port int) *atomic.Int64 {
	d.t.Helper()
	var l net.Listener
	require.NoError(d.t, d.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		return err
	}))
	var n atomic.Int64
	s := &http.Server{ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { n.Add(1); w.WriteHeader(http.StatusTeapot) })}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	d.t.Cleanup(func() { _ = s.Close(); serving.Wait() })
	return &n
}

func (d *developerLaptop) try(args ...string) (string, error) {
	out, err := d.Command(context.Background(), "detour", append(args, "--kubeconfig", d.config)...).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (d *developerLaptop) detour(args ...string) string {
	d.t.Helper()
	out, err := d.try(args...)
	require.NoError(d.t, err, out)
	return out
}

// askAs asks for the catalog with the mark of a developer and returns whose edition came.
func askAs(client *http.Client, who string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	ctx, reached := traced(ctx)
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://catalog.shop/", nil)
	if err != nil {
		return "", err
	}
	if who != "" {
		r.Header.Set("x-dev", who)
	}
	answer, err := client.Do(r)
	if err != nil {
		return "", fmt.Errorf("%w (reached %s)", err, reached())
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		return "", err
	}
	_, rest, _ := strings.Cut(string(page), `"edition":"`)
	edition, _, _ := strings.Cut(rest, `"`)
	if edition == "" {
		return "", fmt.Errorf("%s: %s", answer.Status, page)
	}
	return edition, nil
}

// mixed asks with the marks of everybody until stop is called. Every answer must come from where its mark says.
func mixed(connections int, marks ...string) (stop func() (int, []string)) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var count atomic.Int64
	var mu sync.Mutex
	var wrong []string
	for i := range connections {
		all.Go(func() {
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: i%4 == 0, MaxIdleConnsPerHost: 1}}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				who := marks[rand.N(len(marks))]
				want := who
				if who == "" || who == "carol" {
					want = "cluster"
				}
				if got, err := askAs(client, who); err != nil || got != want {
					mu.Lock()
					wrong = append(wrong, fmt.Sprintf("%s %q: got %q %v", time.Now().Format("15:04:05.000"), who, got, err))
					mu.Unlock()
				}
				count.Add(1)
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() (int, []string) { cancel(); all.Wait(); return int(count.Load()), wrong }
}

// posts sends, on connections that it keeps, what a client may not send twice, until stop is called, which returns the failures. Any answer
// will do: the catalog takes no POST.
func posts(connections int, marks ...string) (stop func() []error) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	for i := range connections {
		all.Go(func() {
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: 10 * time.Second}
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				traced, reached := traced(context.Background())
				r, err := http.NewRequestWithContext(traced, http.MethodPost, "http://catalog.shop/", strings.NewReader("order"))
				if err == nil {
					r.Header.Set("x-dev", marks[i%len(marks)])
					var answer *http.Response
					if answer, err = client.Do(r); err == nil {
						_, err = io.Copy(io.Discard, answer.Body)
						_ = answer.Body.Close()
					}
				}
				if err != nil {
					mu.Lock()
					failed = append(failed, fmt.Errorf("%s: %w (reached %s)", time.Now().Format("15:04:05.000"), err, reached()))
					mu.Unlock()
				}
				time.Sleep(20 * time.Millisecond)
			}
		})
	}
	return func() []error { cancel(); all.Wait(); return failed }
}

// Several developers share one service: each gets the requests with their mark, nobody else's, while it is rolled out and scaled, and
// whatever becomes of their laptops.
func TestPersonalIntercepts(t *testing.T) {
	alice, bob := newDeveloper(t, 0, "alice"), newDeveloper(t, 1, "bob")
	connected(t)
	stop := mixed(8, "", "carol")
	out := alice.detour("intercept", "catalog", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	require.Contains(t, out, "only: header x-dev=alice")
	require.Contains(t, out, "try: curl -H 'x-dev: alice' http://catalog.shop/")
	bob.detour("intercept", "catalog", "--port", "18080", "--header", "x-dev=bob", "-n", "shop")
	n, wrong := stop()
	require.Empty(t, wrong, "nobody else noticed, of %d", n)

	t.Run("an ambiguous one is refused", func(t *testing.T) {
		out, err := bob.try("intercept", "catalog", "--port", "18080", "--header", "x-dev=alice")
		require.Error(t, err)
		require.Contains(t, out, "header x-dev=alice")
		require.Contains(t, out, "requests could match both")
	})
	require.Contains(t, detour(t, "list", "-n", "shop"), "header x-dev=bob")
	require.Contains(t, kubectl(t, "-n", "shop", "get", "intercepts"), "header x-dev=alice")

	tapping := newIdleDeveloper(t, 2)
	copies := tapping.count(18080)
	require.Contains(t, tapping.detour("intercept", "catalog", "--port", "18080", "--mode", "wiretap", "-n", "shop"), "copies of all requests")

	t.Run("64 connections, rolled out, scaled and evicted", func(t *testing.T) {
		stop := mixed(64, "alice", "bob", "carol", "")
		posted := posts(8, "alice", "carol")
		kubectl(t, "-n", "shop", "rollout", "restart", "deployment/catalog")
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=120s")
		kubectl(t, "-n", "shop", "scale", "deployment/catalog", "--replicas=5")
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=120s")
		kubectl(t, "-n", "shop", "scale", "deployment/catalog", "--replicas=1")
		time.Sleep(6 * time.Second)
		kubectl(t, "-n", "shop", "scale", "deployment/catalog", "--replicas=3")
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=120s")
		// As a drained node does it, within the owner's budget.
		kubectl(t, "-n", "shop", "create", "poddisruptionbudget", "catalog", "--selector=app=catalog", "--min-available=2")
		defer kubectl(t, "-n", "shop", "delete", "poddisruptionbudget", "catalog")
		for _, pod := range strings.Fields(podsOf(t, "catalog", "{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}"))[:2] {
			evict(t, pod)
		}
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=120s")
		for _, pod := range strings.Fields(podsOf(t, "catalog", "{{.metadata.name}}{{range .spec.initContainers}}/{{.name}}{{end}} ")) {
			require.Contains(t, pod, "/traffic-agent")
		}
		failed := posted()
		n, wrong := stop()
		require.Empty(t, wrong)
		require.Empty(t, failed, "a pod that ends asks its clients to go before")
		t.Logf("%d requests, %d copies", n, copies.Load())
		require.Greater(t, copies.Load(), int64(n)/2, "the wiretap got its copies, of what was not more than it could take")
	})

	t.Run("a wiretap that vanishes", func(t *testing.T) {
		stop := mixed(16, "alice", "bob", "carol", "")
		require.NoError(t, syscall.Kill(tapping.daemonPID(), syscall.SIGKILL))
		time.Sleep(3 * time.Second)
		_, wrong := stop()
		require.Empty(t, wrong)
	})

	t.Run("a global one takes the rest", func(t *testing.T) {
		laptopService(t, 18080)
		detour(t, "intercept", "catalog", "--port", "18080")
		for who, want := range map[string]string{"alice": "alice", "bob": "bob", "carol": "laptop", "": "laptop"} {
			got, err := askAs(http.DefaultClient, who)
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
		detour(t, "leave", "catalog")
	})

	t.Run("a laptop that vanishes", func(t *testing.T) {
		stop := mixed(16, "bob", "carol", "")
		hers := watchWith(func(int) *http.Transport { return &http.Transport{MaxIdleConnsPerHost: 1} }, "alice")
		pid := alice.daemonPID()
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		fault := time.Now()
		time.Sleep(3 * time.Second)
		hers.check(t, fault, 2*time.Second)
		_, wrong := stop()
		require.Empty(t, wrong)
	})
	bob.detour("leave", "catalog")
	got, err := askAs(http.DefaultClient, "bob")
	require.NoError(t, err)
	require.Equal(t, "cluster", got)
}

// evict asks for the eviction of a pod until its budget allows it.
func evict(t *testing.T, name string) {
	t.Helper()
	require.Eventually(t, func() bool {
		cmd := exec.Command("kubectl", "create", "--raw", "/api/v1/namespaces/shop/pods/"+name+"/eviction", "-f", "-")
		cmd.Stdin = strings.NewReader(fmt.Sprintf(`{"apiVersion":"policy/v1","kind":"Eviction","metadata":{"namespace":"shop","name":%q}}`, name))
		out, err := cmd.CombinedOutput()
		if err != nil {
			assert.Contains(t, string(out), "disruption budget")
		}
		return err == nil
	}, 90*time.Second, 500*time.Millisecond, "the eviction of %s", name)
}

// daemonPID finds the daemon in the laptop by its socket's directory.
func (d *developerLaptop) daemonPID() int {
	d.t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/environ")
	require.NoError(d.t, err)
	for _, path := range all {
		environment, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(environment), "DETOUR_RUN_DIR="+d.RunDir()) {
			continue
		}
		line, err := os.ReadFile(filepath.Join(filepath.Dir(path), "cmdline"))
		if err == nil && strings.HasSuffix(strings.TrimRight(string(line), "\x00"), "detour\x00daemon") {
			var pid int
			_, err := fmt.Sscanf(path, "/proc/%d/", &pid)
			require.NoError(d.t, err)
			return pid
		}
	}
	require.Fail(d.t, "no daemon")
	return 0
}

// --me marks by the user's name, in a header of its own or in the baggage that OpenTelemetry passes on.
func TestOnlyMe(t *testing.T) {
	me := newDeveloper(t, 0, "me")
	connected(t)
	out := me.detour("intercept", "catalog", "--port", "18080", "--me", "-n", "shop")
	require.Contains(t, out, "try: curl -H 'x-detour-for: ")
	_, rest, _ := strings.Cut(out, "x-detour-for: ")
	user, _, _ := strings.Cut(rest, "'")
	for _, c := range []struct{ name, value, want string }{
		{"x-detour-for", user, "me"}, {"x-detour-for", user + "x", "cluster"}, {"baggage", "a=b,detour=" + user, "me"}, {"baggage", "detour=other", "cluster"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://catalog.shop/", nil)
		require.NoError(t, err)
		r.Header.Set(c.name, c.value)
		answer, err := http.DefaultClient.Do(r)
		require.NoError(t, err)
		page, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		require.NoError(t, err)
		require.Contains(t, string(page), `"edition":"`+c.want+`"`, "%s: %s", c.name, c.value)
	}
}
