package daemon

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func kubeOf(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, detour.AddToScheme(scheme))
	mapper := meta.NewDefaultRESTMapper(nil)
	mapper.Add(detour.GroupVersion.WithKind("Session"), meta.RESTScopeNamespace)
	kube, err := client.New(config, client.Options{Scheme: scheme, Mapper: mapper})
	require.NoError(t, err)
	return kube
}

// The laptop has to know how long it may be silent as the chart's value is now, or it takes for a person's what the traffic-manager has deleted; and
// that a traffic-manager of another version has no tunnel for it, which would look like a network that is away.
func TestFollowsTheSession(t *testing.T) {
	is := detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "alice"}, Status: detour.SessionStatus{ManagerPublicKey: "another", GivenUpAfter: metav1.Duration{Duration: time.Minute}}}
	meta.SetStatusCondition(&is.Status.Conditions, metav1.Condition{Type: detour.ConditionReady, Status: metav1.ConditionFalse, Reason: detour.ReasonVersionMismatch, Message: "install the same version"})
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(is)
	}))
	t.Cleanup(api.Close)
	s := &session{log: slog.New(slog.DiscardHandler), kube: kubeOf(t, &rest.Config{Host: api.URL}), object: detour.Session{ObjectMeta: is.ObjectMeta, Status: detour.SessionStatus{ManagerPublicKey: "key", GivenUpAfter: metav1.Duration{Duration: 10 * time.Minute}}}}
	_, err := s.refresh(context.Background())
	require.ErrorIs(t, err, errOtherManager)
	require.Equal(t, time.Minute, s.object.Status.GivenUpAfter.Duration)
	require.EqualError(t, s.refused, "install the same version")
	require.False(t, s.renews(&daemonv1.ConnectRequest{Kubeconfig: []byte("another")}), "other credentials would not help")
}

// Credentials that have expired are replaced by those of the next connect. The session's are those of the kubeconfig as it was: who logged in again was
// told to be connected already, and that the credentials have expired.
func TestRenew(t *testing.T) {
	var mu sync.Mutex
	accepted, asked := "monday", []string(nil) // asked are the sessions made, by the token
	api := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if r.Method == http.MethodPost {
			asked = append(asked, token)
		}
		w.Header().Set("Content-Type", "application/json")
		if token != accepted {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"Unauthorized","reason":"Unauthorized","code":401}`))
			return
		}
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","message":"no more of this","reason":"InternalError","code":500}`))
	}))
	t.Cleanup(api.Close)
	ofDay := func(token string) []byte {
		return []byte("apiVersion: v1\nkind: Config\nclusters: [{name: a, cluster: {server: '" + api.URL + "', insecure-skip-tls-verify: true}}]\nusers: [{name: a, user: {token: " + token + "}}]\ncontexts: [{name: a, context: {cluster: a, user: a}}]\ncurrent-context: a\n")
	}
	config, err := kubeconfig.Unpack(ofDay("monday"))
	require.NoError(t, err)
	kube := kubeOf(t, config)
	dir := t.TempDir()
	server := &Server{paths: ipc.Paths{Run: dir, State: dir}, log: slog.New(slog.DiscardHandler)}
	s := &session{
		log: server.log, kube: kube, server: config.Host, object: detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "alice"}},
		request: &daemonv1.ConnectRequest{Kubeconfig: ofDay("monday"), Namespace: "shop", HostLoopback: true}, wanted: []*wanted{{request: &daemonv1.InterceptRequest{Service: "web"}}},
	}
	tuesday := &daemonv1.ConnectRequest{Kubeconfig: ofDay("tuesday"), Namespace: "shop"}

	_, err = s.refresh(context.Background())
	require.Error(t, err)
	require.False(t, s.renews(tuesday), "a cluster that cannot answer")
	mu.Lock()
	accepted = "tuesday"
	mu.Unlock()
	_, err = s.refresh(context.Background())
	require.Error(t, err)
	require.ErrorContains(t, s.refused, "log in again")
	require.False(t, s.renews(&daemonv1.ConnectRequest{Kubeconfig: ofDay("monday")}), "the same once more")
	require.True(t, s.renews(tuesday))
	_, err = server.renew(context.Background(), s, tuesday.Kubeconfig, func(string) {})
	require.ErrorContains(t, err, "no more of this")
	require.True(t, s.isEnded())
	require.Len(t, s.wishes(), 1, "for the next one who connects")
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, []string{"tuesday"}, asked)
}

// What stands before the API server may say for a while that nothing is there. A session ends when the API server says so.
func TestWhoSaysThatASessionIsGone(t *testing.T) {
	answer := func(w http.ResponseWriter) { http.Error(w, "default backend - 404", http.StatusNotFound) }
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { answer(w) }))
	t.Cleanup(front.Close)
	s := &session{log: slog.New(slog.DiscardHandler), kube: kubeOf(t, &rest.Config{Host: front.URL}), object: detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "alice"}}}
	gone := func() bool { deleted, _ := s.refresh(t.Context()); return deleted }
	for range maxStrange - 1 {
		require.False(t, gone())
	}
	require.True(t, gone(), "its kind may have been deleted with it")

	s.strange = 0
	answer = func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusNotFound)
		status := apierrors.NewNotFound(schema.GroupResource{Group: detour.GroupVersion.Group, Resource: "sessions"}, "alice").Status()
		status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
		_ = json.NewEncoder(w).Encode(status)
	}
	require.True(t, gone())
}
