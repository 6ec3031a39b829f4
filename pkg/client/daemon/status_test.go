package daemon

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster/clustertest"
)

// The race detector proves that a status reads no field that the supervisor writes.
func TestStatusWhileTheSessionIsFollowed(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{})
	object := s.record.get()
	have(s, "web")
	var running sync.WaitGroup
	running.Go(func() {
		for n := range 20 {
			object.Status.GivenUpAfter = metav1.Duration{Duration: time.Duration(n) * time.Second}
			object.Status.Subnets = append(object.Status.Subnets, "10.0.0.0/8")
			object.Status.UDPEndpoints = append(object.Status.UDPEndpoints, "192.0.2.1:7844")
			api.Put(&object)
			_, err := s.refresh(context.WithoutCancel(t.Context()))
			if err != nil {
				t.Error(err)
			}
		}
	})
	for range 20 {
		r := s.status(t.Context())
		require.True(t, r.Connected)
		require.True(t, r.TunnelUp)
		require.Equal(t, "alice", r.Session)
		require.Len(t, r.Intercepts, 1)
	}
	running.Wait()
}

func TestStatusOfASilentCluster(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{})
	have(s, "web")
	api.Break(clustertest.Silent)
	within(t, "status", func() {
		require.Contains(t, s.status(t.Context()).Problem, "the API server does not answer")
	})
}

func TestStatusReportsExpiredCredentials(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{})
	object := s.record.get()
	api.Put(&object)
	require.Empty(t, s.status(t.Context()).Problem)
	api.Break(clustertest.Unauthorized)
	require.Contains(t, s.status(t.Context()).Problem, "log in again")
	api.Break(nil)
	require.Empty(t, s.status(t.Context()).Problem, "the credentials are accepted again")
}
