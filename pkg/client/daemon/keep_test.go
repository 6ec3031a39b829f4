package daemon

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// A session that is gone was deleted by the traffic-manager when the laptop was silent for as long as that waits, and else by a person.
func TestGivenUp(t *testing.T) {
	now := time.Now()
	for name, c := range map[string]struct {
		silent  time.Duration
		givenUp bool
	}{
		"the laptop was there":                 {silent: 4 * time.Second},
		"a short outage":                       {silent: 5 * time.Minute},
		"a sleep as long as the manager waits": {silent: 10 * time.Minute, givenUp: true},
		"a night":                              {silent: 9 * time.Hour, givenUp: true},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.givenUp, givenUp(now.Add(-c.silent), now, 10*time.Minute))
		})
	}
}

// Who does not wait until a lost session is made again, but connects, has its intercepts all the same, unless they were left meanwhile.
func TestWhatALostSessionLeaves(t *testing.T) {
	server := &Server{log: slog.New(slog.DiscardHandler)}
	lost := func() *session {
		return &session{
			log: server.log, context: "default", namespace: "shop", server: "https://staging:6443", intercepts: map[string]*localIntercept{},
			wanted: []*wanted{{request: &daemonv1.InterceptRequest{Service: "web"}}, {request: &daemonv1.InterceptRequest{Service: "db"}}},
		}
	}
	after := func(before *session, namespace string) []*wanted {
		n := &session{server: "https://staging:6443", request: &daemonv1.ConnectRequest{Context: "default", Namespace: namespace}}
		n.succeed(before)
		return n.wishes()
	}
	s := lost()
	server.lose(t.Context(), s, s.wishes())
	require.Len(t, after(s, "shop"), 2)
	require.Empty(t, after(s, "bank"), "elsewhere")
	_, err := s.leave(t.Context(), &daemonv1.LeaveRequest{Service: "web"})
	require.NoError(t, err)
	server.lose(t.Context(), s, lost().wishes())
	require.Len(t, after(s, "shop"), 1, "it is lost once")

	s = lost()
	server.lose(t.Context(), s, nil)
	require.Empty(t, after(s, "shop"), "a person has deleted it")
	require.Empty(t, after(nil, "shop"))
}

// A tunnel is made of the traffic-manager's key and of the addresses that it gave. Who has others now is not heard through the one that is there.
func TestOutdated(t *testing.T) {
	was := detour.SessionStatus{ManagerPublicKey: "key", Addresses: []string{"198.18.0.2", "fd64::2"}}
	for name, c := range map[string]struct {
		is       detour.SessionStatus
		outdated bool
	}{
		"the same":                    {was, false},
		"another pod, other networks": {detour.SessionStatus{ManagerPublicKey: "key", Addresses: was.Addresses, ManagerPod: "new", Subnets: []string{"10.0.0.0/8"}}, false},
		"another key":                 {detour.SessionStatus{ManagerPublicKey: "another", Addresses: was.Addresses}, true},
		"another sessionCIDR":         {detour.SessionStatus{ManagerPublicKey: "key", Addresses: []string{"100.64.0.2", "fd64::2"}}, true},
		"without sessionCIDR6":        {detour.SessionStatus{ManagerPublicKey: "key", Addresses: []string{"198.18.0.2"}}, true},
		"no address left yet":         {detour.SessionStatus{ManagerPublicKey: "key"}, false},
		"not answered yet":            {detour.SessionStatus{}, false},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.outdated, outdated(was, c.is)) })
	}
}
