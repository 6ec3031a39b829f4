package suite

import (
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/subject"
	"github.com/detour-dev/detour/integration/suite/kit"
)

// Several developers share one service. Each gets the requests with their own mark and no others,
// while the service is rolled out and scaled, and whatever happens to their laptops.
func TestPersonalIntercepts(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Subject), kit.Uses(kit.Machine))
	const pause = 20 * time.Millisecond
	kit.DeploySubject(t)
	alice, bob := kit.NewLaptop(t), kit.NewLaptop(t)
	alice.ServeSubject("alice")
	bob.ServeSubject("bob")
	kit.Connect(t)
	out := alice.Detour("intercept", "subject", "--port", "18080", "--header", "x-dev=alice", "-n", "shop")
	require.Contains(t, out, "only: header x-dev=alice")
	require.Contains(t, out, "try: curl -H 'x-dev: alice' http://subject.shop/")
	load := kit.NewMixture(t, 8, pause, "alice", "carol", "")
	bob.Detour("intercept", "subject", "--port", "18080", "--header", "x-dev=bob", "-n", "shop")
	n, wrong := load.Stop()
	require.Empty(t, wrong, "nobody else noticed, of %d", n)

	t.Run("an ambiguous one is refused", func(t *testing.T) {
		out, err := bob.Try("intercept", "subject", "--port", "18080", "--header", "x-dev=alice")
		require.Error(t, err)
		holder := kit.Kubectl(t, "-n", "shop", "get", "intercepts", "-o",
			`go-template={{range .items}}{{if and (eq .spec.service "subject") (eq .status.requests "header x-dev=alice")}}{{.status.laptop}}{{end}}{{end}}`)
		require.NotEmpty(t, holder)
		require.Contains(t, out, "a request could match both this intercept and the one by ")
		require.Regexp(t,
			regexp.QuoteMeta(holder)+
				` since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC \(intercept subject-\S+\) \(header x-dev=alice\)`, out)
	})
	require.Contains(t, kit.Detour(t, "list", "-n", "shop"), "header x-dev=bob")
	require.Contains(t, kit.Kubectl(t, "-n", "shop", "get", "intercepts"), "header x-dev=alice")

	tapping := kit.NewLaptop(t)
	copies := tapping.CountRequests()
	require.Contains(t, tapping.Detour("intercept", "subject", "--port", "18080", "--mode", "wiretap", "-n", "shop"),
		"copies of all requests")
	dropped := func() (n int64) {
		_, _ = fmt.Sscan(kit.Query(t, "shop", "intercepts", `{.items[?(@.spec.mode=="Wiretap")].status.dropped}`), &n)
		return n
	}

	t.Run("every request is copied, or counted", func(t *testing.T) {
		load := kit.NewMixture(t, 16, pause)
		load.BobIs("bob")
		kit.Eventually(t, func() bool { return load.Sent.Load() > 500 })
		n, wrong := load.Stop()
		require.Empty(t, wrong)
		// Whole copies, and those that the laptop got only in part.
		assert.Eventually(t, func() bool { return copies.Load()+dropped() >= n }, kit.Patience(t), 200*time.Millisecond)
		require.LessOrEqual(t, copies.Load(), n, "none twice")
		t.Logf("%d requests, %d copies, %d dropped", n, copies.Load(), dropped())
	})

	t.Run("64 connections and streams, rolled out, scaled and evicted", func(t *testing.T) {
		// as in TestTogether: a laptop that is too busy to accept connections counts as gone
		load := kit.NewMixture(t, 64, 100*time.Millisecond)
		load.BobIs("bob")
		h := kit.NewStreams(t)
		kinds := kit.StreamKinds(t)
		closers := []func(){h.Reopen(kinds, "alice", "alice"), h.Reopen(kinds, "carol", "cluster")}
		kit.Kubectl(t, "-n", "shop", "rollout", "restart", "deployment/subject")
		kit.WaitForRollout(t, "shop", "deployment/subject")
		kit.Kubectl(t, "-n", "shop", "scale", "deployment/subject", "--replicas=5")
		kit.WaitForRollout(t, "shop", "deployment/subject")
		kit.Kubectl(t, "-n", "shop", "scale", "deployment/subject", "--replicas=1")
		time.Sleep(6 * time.Second)
		kit.Kubectl(t, "-n", "shop", "scale", "deployment/subject", "--replicas=3")
		kit.WaitForRollout(t, "shop", "deployment/subject")
		// Draining a node does the same, within the owner's disruption budget.
		kit.Kubectl(t, "-n", "shop", "create", "poddisruptionbudget", "subject", "--selector=app=subject",
			"--min-available=2")
		defer kit.Kubectl(t, "-n", "shop", "delete", "poddisruptionbudget", "subject")
		for _, pod := range strings.Fields(kit.Pods(t, "subject",
			"{{if not .metadata.deletionTimestamp}}{{.metadata.name}} {{end}}"))[:2] {
			kit.Evict(t, pod)
		}
		kit.WaitForRollout(t, "shop", "deployment/subject")
		for _, pod := range strings.Fields(kit.Pods(t, "subject",
			"{{.metadata.name}}{{range .spec.initContainers}}/{{.name}}{{end}} ")) {
			require.Contains(t, pod, "/traffic-agent")
		}
		n, wrong := load.Stop()
		for _, end := range closers {
			end()
		}
		t.Logf("%d requests, %d copies, %d dropped, %d streams ended with their pods", n, copies.Load(), dropped(),
			h.Ended.Load())
		require.Empty(t, wrong, "a pod that ends asks its clients to go before")
		require.Empty(t, h.Wrong())
		require.NotZero(t, h.Ended.Load())
	})

	t.Run("a wiretap that vanishes", func(t *testing.T) {
		load := kit.NewMixture(t, 16, pause)
		load.BobIs("bob")
		require.NoError(t, syscall.Kill(tapping.DaemonPID(), syscall.SIGKILL))
		time.Sleep(3 * time.Second)
		_, wrong := load.Stop()
		require.Empty(t, wrong)
	})

	t.Run("a global one takes the rest", func(t *testing.T) {
		l, port := kit.Listen(t, "0")
		var serving sync.WaitGroup
		serving.Go(func() { _ = subject.Serve(l, "laptop") })
		t.Cleanup(func() { _ = l.Close(); serving.Wait() })
		kit.Detour(t, "intercept", "subject", "--port", port)
		for _, client := range kit.Clients(t) {
			for who, want := range map[string]string{"alice": "alice", "bob": "bob", "carol": "laptop", "": "laptop"} {
				_, page := kit.AskSubject(t, client, http.MethodGet, "/", who, nil)
				require.True(t, strings.HasPrefix(page, want+" "), "%q: %s", who, page)
			}
		}
		kit.Detour(t, "leave", "subject")
	})

	t.Run("a laptop that vanishes", func(t *testing.T) {
		load := kit.NewMixture(t, 16, pause, "bob", "carol", "")
		load.BobIs("bob")
		hers := kit.StartMonitor(t, kit.SubjectRequesters(t, "subject"), "alice")
		kit.Eventually(t, hers.Busy)
		pid := alice.DaemonPID()
		require.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
		fault := time.Now()
		time.Sleep(3 * time.Second)
		hers.RequireFailOpen(t, fault, 2*time.Second)
		_, wrong := load.Stop()
		require.Empty(t, wrong)
	})
	bob.Detour("leave", "subject")
	for _, client := range kit.Clients(t) {
		_, page := kit.AskSubject(t, client, http.MethodGet, "/", "bob", nil)
		require.True(t, strings.HasPrefix(page, "cluster "), page)
	}
}

// The flag --me marks requests by the user's name, in a header of detour's or in the baggage that
// OpenTelemetry propagates.
func TestOnlyMe(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Catalog), kit.Uses(kit.Machine))
	me := kit.NewCatalogLaptop(t, "me")
	kit.Connect(t)
	out := me.Detour("intercept", "catalog", "--port", "18080", "--me", "-n", "shop")
	require.Contains(t, out, "try: curl -H 'x-detour-for: ")
	_, rest, _ := strings.Cut(out, "x-detour-for: ")
	user, _, _ := strings.Cut(rest, "'")
	for _, c := range []struct{ name, value, want string }{
		{"x-detour-for", user, "me"}, {"x-detour-for", user + "x", "cluster"}, {
			"baggage", "a=b,detour=" + user,
			"me",
		}, {"baggage", "detour=other", "cluster"},
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://catalog.shop/", nil)
		require.NoError(t, err)
		r.Header.Set(c.name, c.value)
		answer, err := kit.NewConnections().Do(r)
		require.NoError(t, err)
		page, err := io.ReadAll(answer.Body)
		_ = answer.Body.Close()
		require.NoError(t, err)
		require.Contains(t, string(page), `"edition":"`+c.want+`"`, "%s: %s", c.name, c.value)
	}
}
