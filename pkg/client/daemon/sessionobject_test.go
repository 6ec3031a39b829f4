package daemon

import (
	"context"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster/clustertest"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// accept answers each new session as the traffic-manager does.
func accept(api *clustertest.Server) {
	api.OnCreate(func(u *unstructured.Unstructured) {
		u.Object["status"] = map[string]any{"managerPublicKey": "key", "addresses": []any{"198.18.0.2"}}
	})
}

// created makes a session on a machine of a user.
func created(t *testing.T, api *clustertest.Server, state, host, user string) *session {
	t.Helper()
	key, err := wgkey.NewPrivate()
	require.NoError(t, err)
	client := api.Client(t)
	s := &session{
		identity: identity{
			request: &daemonv1.ConnectRequest{User: user, Namespace: clustertest.Namespace}, server: client.Server,
			paths: ipc.Paths{State: state}, host: host,
		},
		log: slog.New(slog.DiscardHandler), cluster: client,
	}
	require.NoError(t, s.create(t.Context(), key, func(string) {}))
	t.Cleanup(s.watch.Close)
	return s
}

// A user who interrupts `detour quit` has quit: the session is deleted nevertheless.
func TestCloseDeletesTheSessionWhenNobodyWaits(t *testing.T) {
	api := clustertest.New(t)
	accept(api)
	s := created(t, api, t.TempDir(), "desk", "alice")
	require.Equal(t, []string{"alice-1"}, api.Names("sessions"))
	interrupted, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, s.close(interrupted))
	require.Empty(t, api.Names("sessions"))
	require.NoFileExists(t, s.journal())
}

// Machines that share a home share the state directory and the cluster.
func TestConnectDeletesOnlyALeftoverOfItsOwnMachine(t *testing.T) {
	api := clustertest.New(t)
	accept(api)
	state := t.TempDir()
	created(t, api, state, "desk", "alice-at-desk")
	created(t, api, state, "lab", "alice-at-lab")
	require.Equal(t, []string{"alice-at-desk-1", "alice-at-lab-1"}, api.Names("sessions"), "the first daemon runs")
	api.Calls("delete sessions")
	created(t, api, state, "desk", "alice-at-desk")
	require.Equal(t, 1, api.Calls("delete sessions"), "the one of this machine was left behind")
	require.Equal(t, []string{"alice-at-desk-1", "alice-at-lab-1"}, api.Names("sessions"))
}

func TestCreateReportsWhyTheManagerHasNoTunnel(t *testing.T) {
	api := clustertest.New(t)
	api.OnCreate(func(u *unstructured.Unstructured) {
		u.Object["status"] = map[string]any{"conditions": []any{map[string]any{
			"type": detour.ConditionReady, "status": "False", "reason": detour.ReasonNoAddressLeft,
			"message": "no address is left",
		}}}
	})
	client := api.Client(t)
	s := &session{
		identity: identity{
			request: &daemonv1.ConnectRequest{User: "alice", Namespace: clustertest.Namespace}, server: client.Server,
			paths: ipc.Paths{State: t.TempDir()}, host: "desk",
		},
		log: slog.New(slog.DiscardHandler), cluster: client,
	}
	key, err := wgkey.NewPrivate()
	require.NoError(t, err)
	require.EqualError(t, s.create(t.Context(), key, func(string) {}), "no address is left")
	require.NoError(t, s.close(t.Context()))
	require.Empty(t, api.Names("sessions"))
}
