package daemon

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster/clustertest"
	"github.com/detour-dev/detour/pkg/client/daemon/intercepts"
	"github.com/detour-dev/detour/pkg/client/daemon/network"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
	"github.com/detour-dev/detour/pkg/vif/transport"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// limit is far above what a test waits for.
const limit = time.Minute

// standing stands in for a network.
type standing struct {
	sessionNetwork
	received time.Time
	closed   bool
}

func (s *standing) Close()                            { s.closed = true }
func (s *standing) Alive() bool                       { return true }
func (s *standing) LastReceived() time.Time           { return s.received }
func (s *standing) RTT(context.Context) time.Duration { return time.Millisecond }
func (s *standing) FollowResolvers()                  {}

func (s *standing) Follow(detour.SessionStatus) error { return nil }

func (s *standing) OfferDirect(context.Context, []string) {}

func (s *standing) Snapshot() network.Snapshot {
	return network.Snapshot{Interface: "detour0", Alive: true, Path: transport.Path{Transport: "direct-udp"}}
}

func aliceSession() detour.Session {
	return detour.Session{ObjectMeta: metav1.ObjectMeta{Namespace: clustertest.Namespace, Name: "alice", UID: "1"}}
}

// sessionOf returns a session on an API server in memory, as connect would have made it, without a
// network. The Session object is "alice".
func sessionOf(t *testing.T, api *clustertest.Server, status detour.SessionStatus) *session {
	t.Helper()
	object := aliceSession()
	object.Status = status
	return newTestSession(t, api.Client(t), object)
}

func newTestSession(t *testing.T, client *cluster.Client, object detour.Session) *session {
	t.Helper()
	s := &session{
		identity: identity{
			request: &daemonv1.ConnectRequest{Context: "default", Namespace: clustertest.Namespace},
			server:  client.Server,
			paths:   ipc.Paths{State: t.TempDir()}, host: "desk",
		},
		log: slog.New(slog.DiscardHandler), cluster: client, record: &record{object: object},
		watch:   client.Watch("alice"),
		network: &standing{}, verified: time.Now(),
	}
	t.Cleanup(s.watch.Close)
	s.intercepts = intercepts.New(intercepts.Config{
		Cluster: client, Watch: s.watch, Session: &object, Log: s.log, Relays: noRelays{},
	})
	return s
}

// sessionAt is sessionOf for the cluster of a kubeconfig.
func sessionAt(t *testing.T, packed []byte) *session {
	t.Helper()
	config, err := kubeconfig.Unpack(packed)
	require.NoError(t, err)
	client, err := cluster.Connect(config, clustertest.Namespace, 0, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	s := newTestSession(t, client, aliceSession())
	s.request.Kubeconfig = packed
	return s
}

// kubeconfigOf is a kubeconfig with one cluster and one user.
func kubeconfigOf(cluster, user string) []byte {
	return []byte("apiVersion: v1\nkind: Config\ncurrent-context: a\n" +
		"contexts: [{name: a, context: {cluster: a, user: a}}]\n" +
		"clusters: [{name: a, cluster: {" + cluster + "}}]\nusers: [{name: a, user: {" + user + "}}]\n")
}

type noRelays struct{}

func (noRelays) Add(string, uint16) {}
func (noRelays) Remove(string)      {}
