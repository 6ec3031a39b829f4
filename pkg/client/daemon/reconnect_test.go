package daemon

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster/clustertest"
	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// The traffic-manager deletes a session whose laptop was silent for as long as it waits. A session
// that is gone earlier was deleted by a person.
func TestGaveUp(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		silence time.Duration
		gaveUp  bool
	}{
		"the laptop was there":                 {silence: 4 * time.Second},
		"a short outage":                       {silence: 5 * time.Minute},
		"a sleep as long as the manager waits": {silence: 10 * time.Minute, gaveUp: true},
		"a night":                              {silence: 9 * time.Hour, gaveUp: true},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.gaveUp, gaveUp(now.Add(-c.silence), now, 10*time.Minute))
		})
	}
}

// A tunnel is made of the traffic-manager's key and of the addresses that it has assigned.
func TestOutdated(t *testing.T) {
	was := detour.SessionStatus{ManagerPublicKey: "key", Addresses: []string{"198.18.0.2", "fd64::2"}}
	for name, c := range map[string]struct {
		is       detour.SessionStatus
		outdated bool
	}{
		"the same": {is: was},
		"another pod and other networks": {is: detour.SessionStatus{
			ManagerPublicKey: "key", Addresses: was.Addresses, ManagerPod: "new", Subnets: []string{"10.0.0.0/8"},
		}},
		"another key": {
			is: detour.SessionStatus{ManagerPublicKey: "another", Addresses: was.Addresses}, outdated: true,
		},
		"another sessionCIDR": {
			is:       detour.SessionStatus{ManagerPublicKey: "key", Addresses: []string{"100.64.0.2", "fd64::2"}},
			outdated: true,
		},
		"no sessionCIDR6": {
			is: detour.SessionStatus{ManagerPublicKey: "key", Addresses: []string{"198.18.0.2"}}, outdated: true,
		},
		"no address yet": {is: detour.SessionStatus{ManagerPublicKey: "key"}},
		"no status yet":  {is: detour.SessionStatus{}},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.outdated, outdated(was, c.is)) })
	}
}

// have gives a session pending intercepts of services.
func have(s *session, services ...string) {
	api := s.intercepts
	api.TakeOver(nil)
	for _, service := range services {
		api.AddPending(&daemonv1.InterceptRequest{Service: service})
	}
}

// A user who connects before a lost session is made again gets its intercepts, unless they were
// left meanwhile.
func TestNextSessionTakesTheInterceptsOfALostOneOver(t *testing.T) {
	api := clustertest.New(t)
	server := &Server{log: slog.New(slog.DiscardHandler)}
	after := func(before *session, namespace string) int {
		n := sessionOf(t, api, detour.SessionStatus{})
		n.request = &daemonv1.ConnectRequest{Context: "default", Namespace: namespace}
		n.takeOver(before)
		return len(n.intercepts.All())
	}
	s := sessionOf(t, api, detour.SessionStatus{})
	have(s, "web", "db")
	server.end(t.Context(), s, s.intercepts.All())
	require.Equal(t, 2, after(s, clustertest.Namespace))
	require.Zero(t, after(s, "bank"), "another namespace")
	_, err := s.intercepts.Leave(t.Context(), &daemonv1.LeaveRequest{Service: "web"})
	require.NoError(t, err)
	server.end(t.Context(), s, nil)
	require.Equal(t, 1, after(s, clustertest.Namespace), "a session ends once")

	s = sessionOf(t, api, detour.SessionStatus{})
	have(s, "web", "db")
	server.end(t.Context(), s, nil)
	require.Zero(t, after(s, clustertest.Namespace), "a person has deleted it")
	require.Zero(t, after(nil, clustertest.Namespace))
}

// The chart's value for how long a laptop may be silent can change: with the old value a session
// that the traffic-manager has given up would look as if a person had deleted it. And a
// traffic-manager of another version has no tunnel for the laptop, which would look like a broken
// network.
func TestRefreshFollowsTheSession(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{
		ManagerPublicKey: "key", GivenUpAfter: metav1.Duration{Duration: 10 * time.Minute},
	})
	is := s.record.get()
	is.Status = detour.SessionStatus{ManagerPublicKey: "another", GivenUpAfter: metav1.Duration{Duration: time.Minute}}
	meta.SetStatusCondition(&is.Status.Conditions, metav1.Condition{
		Type: detour.ConditionReady, Status: metav1.ConditionFalse, Reason: detour.ReasonVersionMismatch,
		Message: "install the same version",
	})
	api.Put(&is)
	_, err := s.refresh(t.Context())
	require.ErrorIs(t, err, errOtherManager)
	require.Equal(t, time.Minute, s.record.get().Status.GivenUpAfter.Duration)
	require.EqualError(t, s.health.snapshot(), "install the same version")
	other := &daemonv1.ConnectRequest{Kubeconfig: []byte("another")}
	require.False(t, s.renews(t.Context(), other), "other credentials would not help")
}

// A proxy in front of the API server may answer 404 for a while. A session ends when the API server
// itself says that it is gone.
func TestSessionIsGoneWhenTheAPIServerSaysSo(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{})
	api.Break(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "default backend - 404", http.StatusNotFound)
	})
	gone := func() bool { gone, _ := s.refresh(t.Context()); return gone }
	for range maxNotFoundStreak - 1 {
		require.False(t, gone())
	}
	require.True(t, gone(), "its kind may have been deleted with it")

	s = sessionOf(t, api, detour.SessionStatus{})
	api.Break(nil)
	require.True(t, gone())
}

// supervised runs supervise for a session until the test ends.
func supervised(t *testing.T, s *session) *Server {
	t.Helper()
	server := &Server{log: s.log}
	server.put(s)
	var running sync.WaitGroup
	ctx := t.Context() // ends before the cleanup
	running.Go(func() { server.supervise(ctx) })
	t.Cleanup(running.Wait)
	return server
}

func TestSupervisorEndsASessionThatAPersonDeletes(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{GivenUpAfter: metav1.Duration{Duration: time.Hour}})
	object := s.record.get()
	api.Put(&object)
	s.network.(*standing).received = time.Now()
	s.health.received(time.Now())
	supervised(t, s)
	api.Delete("sessions", "alice")
	require.Eventually(t, s.isEnded, limit, time.Millisecond)
	require.Eventually(t, func() bool { return s.health.snapshot() != nil }, limit, time.Millisecond)
	require.ErrorIs(t, s.health.snapshot(), errEnded)
	require.True(t, s.network.(*standing).closed, "the laptop is restored")
}

// A watch reports the deletion. Without it the session would be lost only after upkeepInterval.
func TestSupervisorIsToldOfADeletion(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{GivenUpAfter: metav1.Duration{Duration: time.Hour}})
	object := s.record.get()
	api.Put(&object)
	s.health.received(time.Now())
	s.network.(*standing).received = time.Now()
	server := &Server{log: s.log}
	server.put(s)
	require.Eventually(t, func() bool {
		_, err := s.watch.Session(t.Context())
		return err == nil && api.Calls("get sessions") == 0
	}, limit, time.Millisecond)
	changed, _ := s.watch.Changed()
	api.Delete("sessions", "alice")
	<-changed
	require.Nil(t, server.inspect(t.Context(), s, false))
	require.True(t, s.isEnded())
}

// A laptop that wakes up hears the tunnel before the watch reports that the traffic-manager has
// given the session up. Such a session is made again: no person has deleted it.
func TestSupervisorDistrustsTheWatchAfterASilence(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{GivenUpAfter: metav1.Duration{Duration: time.Minute}})
	object := s.record.get()
	api.Put(&object)
	asleep := time.Now().Add(-time.Hour)
	s.health.received(asleep)
	s.network.(*standing).received = asleep
	server := &Server{log: s.log}
	server.put(s)
	require.Eventually(t, func() bool {
		_, err := s.watch.Session(t.Context())
		return err == nil && api.Calls("get sessions") == 0
	}, limit, time.Millisecond)
	api.DeleteSilently("sessions", "alice")
	s.network.(*standing).received = time.Now()
	require.Equal(t, s, server.inspect(t.Context(), s, true), "it is made again")
	require.False(t, s.isEnded())
}

// The session keeps the credentials of the kubeconfig as it was at connect. A user who has logged
// in again gets a session with the new ones.
func TestConnectReplacesExpiredCredentials(t *testing.T) {
	var mu sync.Mutex
	accepted, created := "monday", []string(nil) // created are the tokens of requests for a session
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if r.Method == http.MethodPost {
			created = append(created, token)
		}
		w.Header().Set("Content-Type", "application/json")
		if token != accepted {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized",` +
				`"reason":"Unauthorized","code":401}`))
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no more of this",` +
			`"reason":"InternalError","code":500}`))
	}))
	t.Cleanup(api.Close)
	ofDay := func(token string) []byte {
		return kubeconfigOf("server: '"+api.URL+"', insecure-skip-tls-verify: true", "token: "+token)
	}
	dir := t.TempDir()
	server := &Server{paths: ipc.Paths{Run: dir, State: dir}, log: slog.New(slog.DiscardHandler)}
	s := sessionAt(t, ofDay("monday"))
	s.request.HostLoopback = true
	have(s, "web")
	tuesday := &daemonv1.ConnectRequest{Kubeconfig: ofDay("tuesday"), Namespace: clustertest.Namespace}

	_, err := s.refresh(t.Context())
	require.Error(t, err)
	require.False(t, s.renews(t.Context(), tuesday), "a cluster that cannot answer")
	mu.Lock()
	accepted = "tuesday"
	mu.Unlock()
	_, err = s.refresh(t.Context())
	require.Error(t, err)
	require.ErrorContains(t, s.health.snapshot(), "log in again")
	monday := &daemonv1.ConnectRequest{Kubeconfig: ofDay("monday")}
	require.False(t, s.renews(t.Context(), monday), "the same credentials")
	require.True(t, s.renews(t.Context(), tuesday))
	_, err = server.renewLocked(t.Context(), s, tuesday.Kubeconfig, func(string) {})
	require.ErrorContains(t, err, "no more of this")
	require.True(t, s.isEnded())
	require.Len(t, s.intercepts.All(), 1, "for the next session")
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"tuesday"}, created)
}
