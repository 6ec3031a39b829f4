package suite

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster/laptop"
	"github.com/detour-dev/detour/integration/subject"
)

// developerLaptop is a laptop with a catalog of its own, whose edition is the developer's name.
type developerLaptop struct {
	*laptop.Laptop
	t       *testing.T
	config  string
	service *exec.Cmd
}

func newDeveloper(t *testing.T, name string) *developerLaptop {
	t.Helper()
	d := newIdleDeveloper(t, 0)
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

// newIdleDeveloper is a laptop on which nothing runs yet, for the shop. Of the tests that have such one runs at a time.
func newIdleDeveloper(t *testing.T, i int) *developerLaptop {
	t.Helper()
	return newGuest(t, i, func() {
		connections.Lock()
		defer connections.Unlock()
		own := ownSession()
		if connections.n > 1 && own == "" {
			return // it is being made again, and other tests work with it
		}
		for session := range strings.FieldsSeq(kubectl(t, "-n", "shop", "get", "sessions", "-o", "jsonpath={.items[*].metadata.name}")) {
			if session != own { // one of a laptop that vanished
				kubectl(t, "-n", "shop", "delete", "session", session, "--ignore-not-found")
			}
		}
	})
}

// newGuest is a laptop on which nothing runs yet. after is done when it has left the cluster.
func newGuest(t *testing.T, i int, after func()) *developerLaptop {
	t.Helper()
	l, err := laptop.New(t.Context(), i)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, l.Close()) })
	d := &developerLaptop{Laptop: l, t: t}
	d.config, err = l.Kubeconfig("")
	require.NoError(t, err)
	t.Cleanup(func() {
		_, _ = d.try("quit")
		after()
	})
	return d
}

// count serves both versions of HTTP on the laptop and counts the requests that come whole.
func (d *developerLaptop) count(port int) *atomic.Int64 {
	d.t.Helper()
	var l net.Listener
	require.NoError(d.t, d.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		return err
	}))
	var n atomic.Int64
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Protocols: protocols, ReadHeaderTimeout: 5 * time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err == nil {
			n.Add(1)
		}
		w.WriteHeader(http.StatusTeapot)
	})}
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

// Several developers share one service: each gets the requests with their mark, nobody else's, while it is rolled out and scaled, and
// whatever becomes of their laptops.
func TestPersonalIntercepts(t *testing.T) {
	const pause = 20 * time.Millisecond
	withSubject(t)
	alice, bob := newIdleDeveloper(t, 0), newIdleDeveloper(t, 1)
	alice.subject("alice")
	bob.subject("bob")
	connected(t)
	out := alice.detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	require.Contains(t, out, "only: header x-dev=alice")
	require.Contains(t, out, "try: curl -H 'x-dev: alice' http://subject.shop/")
	load := newMixture(t, 8, pause, "alice", "carol", "")
	bob.detour("intercept", "subject", "--port", "18080", "--header", "x-dev=bob", "-n", "shop")
	n, wrong := load.ended()
	require.Empty(t, wrong, "nobody else noticed, of %d", n)

	t.Run("an ambiguous one is refused", func(t *testing.T) {
		out, err := bob.try("intercept", "subject", "--port", "18080", "--header", "x-dev=alice")
		require.Error(t, err)
		holder := kubectl(t, "-n", "shop", "get", "intercepts", "-o", `jsonpath={.items[?(@.status.requests=="header x-dev=alice")].status.laptop}`)
		require.NotEmpty(t, holder)
		require.Contains(t, out, "a request could match both this intercept and that of ")
		require.Regexp(t, regexp.QuoteMeta(holder)+` since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(intercept subject-\S+\) \(header x-dev=alice\)`, out)
	})
	require.Contains(t, detour(t, "list", "-n", "shop"), "header x-dev=bob")
	require.Contains(t, kubectl(t, "-n", "shop", "get", "intercepts"), "header x-dev=alice")

	tapping := newIdleDeveloper(t, 2)
	copies := tapping.count(18080)
	require.Contains(t, tapping.detour("intercept", "subject", "--port", "18080", "--mode", "wiretap", "-n", "shop"), "copies of all requests")
	dropped := func() (n int64) {
		_, _ = fmt.Sscan(kubectl(t, "-n", "shop", "get", "intercepts", "-o", `jsonpath={.items[?(@.spec.mode=="Wiretap")].status.dropped}`), &n)
		return n
	}

	t.Run("every request is copied, or counted", func(t *testing.T) {
		load := newMixture(t, 16, pause)
		load.bobs("bob")
		require.Eventually(t, func() bool { return load.asked.Load() > 500 }, patience, 10*time.Millisecond)
		n, wrong := load.ended()
		require.Empty(t, wrong)
		// Whole copies, and those of which the laptop did not get all.
		assert.Eventually(t, func() bool { return copies.Load()+dropped() >= n }, patience, 200*time.Millisecond)
		require.LessOrEqual(t, copies.Load(), n, "none twice")
		t.Logf("%d requests, %d copies, %d dropped", n, copies.Load(), dropped())
	})

	t.Run("64 connections and streams, rolled out, scaled and evicted", func(t *testing.T) {
		load := newMixture(t, 64, 100*time.Millisecond) // as in TestTogether: a laptop that is too busy to accept is gone, rightly
		load.bobs("bob")
		h := &held{t: t}
		kinds := openers(t)
		closers := []func(){h.reopen(kinds, "alice", "alice"), h.reopen(kinds, "carol", "cluster")}
		kubectl(t, "-n", "shop", "rollout", "restart", "deployment/subject")
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/subject", "--timeout=120s")
		kubectl(t, "-n", "shop", "scale", "deployment/subject", "--replicas=5")
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/subject", "--timeout=120s")
		kubectl(t, "-n", "shop", "scale", "deployment/subject", "--replicas=1")
		time.Sleep(6 * time.Second)
		kubectl(t, "-n", "shop", "scale", "deployment/subject", "--replicas=3")
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/subject", "--timeout=120s")
		// As a drained node does it, within the owner's budget.
		kubectl(t, "-n", "shop", "create", "poddisruptionbudget", "subject", "--selector=app=subject", "--min-available=2")
		defer kubectl(t, "-n", "shop", "delete", "poddisruptionbudget", "subject")
		for _, pod := range strings.Fields(podsOf(t, "subject", "{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}"))[:2] {
			evict(t, pod)
		}
		kubectl(t, "-n", "shop", "rollout", "status", "deployment/subject", "--timeout=120s")
		for _, pod := range strings.Fields(podsOf(t, "subject", "{{.metadata.name}}{{range .spec.initContainers}}/{{.name}}{{end}} ")) {
			require.Contains(t, pod, "/traffic-agent")
		}
		n, wrong := load.ended()
		for _, end := range closers {
			end()
		}
		t.Logf("%d requests, %d copies, %d dropped, %d streams ended with their pods", n, copies.Load(), dropped(), h.ended.Load())
		require.Empty(t, wrong, "a pod that ends asks its clients to go before")
		require.Empty(t, h.bad)
		require.NotZero(t, h.ended.Load())
	})

	t.Run("a wiretap that vanishes", func(t *testing.T) {
		load := newMixture(t, 16, pause)
		load.bobs("bob")
		require.NoError(t, syscall.Kill(tapping.daemonPID(), syscall.SIGKILL))
		time.Sleep(3 * time.Second)
		_, wrong := load.ended()
		require.Empty(t, wrong)
	})

	t.Run("a global one takes the rest", func(t *testing.T) {
		l, port := laptopListener(t, "0")
		var serving sync.WaitGroup
		serving.Go(func() { _ = subject.Serve(l, "laptop") })
		t.Cleanup(func() { _ = l.Close(); serving.Wait() })
		detour(t, "intercept", "subject", "--port", port)
		for _, client := range clientsOf(t) {
			for who, want := range map[string]string{"alice": "alice", "bob": "bob", "carol": "laptop", "": "laptop"} {
				_, page := say(t, client, http.MethodGet, "/", who, nil)
				require.True(t, strings.HasPrefix(page, want+" "), "%q: %s", who, page)
			}
		}
		detour(t, "leave", "subject")
	})

	t.Run("a laptop that vanishes", func(t *testing.T) {
		load := newMixture(t, 16, pause, "bob", "carol", "")
		load.bobs("bob")
		hers := watch(t, kinds(t, "subject"), "alice")
		require.Eventually(t, hers.busy, patience, 10*time.Millisecond)
		pid := alice.daemonPID()
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		fault := time.Now()
		time.Sleep(3 * time.Second)
		hers.check(t, fault, 2*time.Second)
		_, wrong := load.ended()
		require.Empty(t, wrong)
	})
	bob.detour("leave", "subject")
	for _, client := range clientsOf(t) {
		_, page := say(t, client, http.MethodGet, "/", "bob", nil)
		require.True(t, strings.HasPrefix(page, "cluster "), page)
	}
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
	me := newDeveloper(t, "me")
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
