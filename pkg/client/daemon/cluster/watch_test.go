package cluster_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster/clustertest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is far above what a test waits for.
const limit = time.Minute

func session(key string) *detour.Session {
	return &detour.Session{
		ObjectMeta: metav1.ObjectMeta{Name: "alice", UID: "1"}, Status: detour.SessionStatus{ManagerPublicKey: key},
	}
}

func intercept(name string, phase detour.InterceptPhase) *detour.Intercept {
	return &detour.Intercept{ObjectMeta: metav1.ObjectMeta{Name: name}, Status: detour.InterceptStatus{Phase: phase}}
}

func watchOf(t *testing.T, api *clustertest.Server) *cluster.Watch {
	t.Helper()
	w := api.Client(t).Watch("alice")
	t.Cleanup(w.Close)
	return w
}

// awaitLive waits until reads take no request.
func awaitLive(t *testing.T, api *clustertest.Server, w *cluster.Watch) {
	t.Helper()
	require.Eventually(t, func() bool {
		api.Calls("get sessions")
		_, err := w.Session(t.Context())
		return err == nil && api.Calls("get sessions") == 0
	}, limit, time.Millisecond)
}

func TestLiveWatchReadsWithoutRequests(t *testing.T) {
	api := clustertest.New(t)
	api.Put(session("one"))
	w := watchOf(t, api)
	awaitLive(t, api, w)
	ctx, done := context.WithTimeout(t.Context(), limit)
	defer done()

	changed, _ := w.Changed()
	api.Put(session("two"))
	<-changed
	got, err := w.AwaitSession(ctx, func(s *detour.Session) bool { return s.Status.ManagerPublicKey == "two" })
	require.NoError(t, err)
	require.Equal(t, "two", got.Status.ManagerPublicKey)
	require.Zero(t, api.Calls("get sessions"))
}

func TestDeletionIsSeenAtOnceAndConfirmed(t *testing.T) {
	api := clustertest.New(t)
	api.Put(session("one"))
	w := watchOf(t, api)
	awaitLive(t, api, w)

	changed, _ := w.Changed()
	api.Delete("sessions", "alice")
	<-changed
	_, err := w.Session(t.Context())
	require.True(t, cluster.IsAbsent(err), "%v", err)
	require.Equal(t, 1, api.Calls("get sessions"), "the API server has confirmed it")
}

func TestAwaitSeesAChangeAfterTheWatchBroke(t *testing.T) {
	api := clustertest.New(t)
	api.Put(session("one"))
	api.Put(intercept("web-1", detour.PhasePending))
	w := watchOf(t, api)
	awaitLive(t, api, w)
	ctx, done := context.WithTimeout(t.Context(), limit)
	defer done()

	awaited := make(chan error, 1)
	go func() { // the test waits for it below
		_, err := w.AwaitIntercept(ctx, "web-1", func(i *detour.Intercept) bool {
			return i.Status.Phase == detour.PhaseActive
		})
		awaited <- err
	}()
	api.BreakWatches()
	api.Put(intercept("web-1", detour.PhaseActive))
	require.NoError(t, <-awaited)
}

// The Role of an older chart does not allow watches.
func TestWatchFallsBackToPollingWhenDenied(t *testing.T) {
	api := clustertest.New(t)
	api.DenyWatches()
	api.Put(session(""))
	w := watchOf(t, api)
	ctx, done := context.WithTimeout(t.Context(), limit)
	defer done()
	go api.Put(session("one")) // ends by itself
	got, err := w.AwaitSession(ctx, func(s *detour.Session) bool { return s.Status.ManagerPublicKey != "" })
	require.NoError(t, err)
	require.Equal(t, "one", got.Status.ManagerPublicKey)
	api.Delete("sessions", "alice")
	_, err = w.Session(ctx)
	require.True(t, cluster.IsAbsent(err), "%v", err)
}

func TestAwaitEndsWithItsContext(t *testing.T) {
	api := clustertest.New(t)
	api.Put(session(""))
	w := watchOf(t, api)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := w.AwaitSession(ctx, func(*detour.Session) bool { return false })
	require.Error(t, err)
	require.Error(t, ctx.Err())
}

func TestIsAbsent(t *testing.T) {
	api := clustertest.New(t)
	c := api.Client(t)
	w := c.Watch("alice")
	t.Cleanup(w.Close)
	_, err := w.ReadSession(t.Context())
	assert.True(t, cluster.IsAbsent(err), "the API server says so")
	api.Break(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "default backend - 404", http.StatusNotFound)
	})
	_, err = w.ReadSession(t.Context())
	assert.False(t, cluster.IsAbsent(err), "a load balancer says so")
}

func TestObjectName(t *testing.T) {
	for in, want := range map[string]string{
		"alice": "alice", "Alice Smith": "alice-smith", "--": "laptop", "": "laptop", "a_b.": "a-b",
		"a-name-that-is-much-longer-than-any-name-of-a-person": "a-name-that-is-much-longer-than-any-name",
	} {
		assert.Equal(t, want, cluster.ObjectName(in), in)
	}
}
