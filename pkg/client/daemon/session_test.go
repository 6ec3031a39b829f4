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

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// sessions is an API server that names sessions after the user who makes them, and tells which were deleted.
func sessions(t *testing.T) (config *rest.Config, deleted func() []string) {
	t.Helper()
	var mu sync.Mutex
	var gone []string
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.Method == http.MethodDelete {
			mu.Lock()
			defer mu.Unlock()
			gone = append(gone, r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:])
			_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusSuccess})
			return
		}
		var s detour.Session
		_ = json.NewDecoder(r.Body).Decode(&s)
		s.Name = s.GenerateName + "1"
		s.Status = detour.SessionStatus{ManagerPublicKey: "key", Addresses: []string{"198.18.0.2"}}
		_ = json.NewEncoder(w).Encode(s)
	}))
	t.Cleanup(api.Close)
	return &rest.Config{Host: api.URL}, func() []string {
		mu.Lock()
		defer mu.Unlock()
		return gone
	}
}

func made(t *testing.T, config *rest.Config, s *session, user string) *session {
	t.Helper()
	key, err := wgkey.NewPrivate()
	require.NoError(t, err)
	s.log, s.kube, s.server, s.namespace = slog.New(slog.DiscardHandler), kubeOf(t, config), config.Host, "shop"
	require.NoError(t, s.create(t.Context(), key, &daemonv1.ConnectRequest{User: user}, func(string) {}))
	return s
}

// Who does not wait for the end of `detour quit` has quit: the cluster is told all the same.
func TestTheClusterIsToldOfAnEndThatNobodyWaitsFor(t *testing.T) {
	config, deleted := sessions(t)
	s := made(t, config, &session{paths: ipc.Paths{State: t.TempDir()}}, "alice")
	s.intercepts = map[string]*localIntercept{"web-1": {}}
	impatient, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.close(impatient))
	require.Equal(t, []string{"alice-1"}, deleted())
	require.NoFileExists(t, s.journal())
}

// Machines that share a home share the state directory, and the cluster.
func TestASessionOfAnotherMachineIsLeftAlone(t *testing.T) {
	config, deleted := sessions(t)
	paths := ipc.Paths{State: t.TempDir()}
	made(t, config, &session{paths: paths, host: "desk"}, "alice-at-desk")
	made(t, config, &session{paths: paths, host: "lab"}, "alice-at-lab")
	require.Empty(t, deleted(), "its daemon is there")
	made(t, config, &session{paths: paths, host: "desk"}, "alice-at-desk")
	require.Equal(t, []string{"alice-at-desk-1"}, deleted(), "that one was left behind")
}
