package intercepts

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// The status shows a pending intercept with the reason, and a user can leave it like any other.
func TestLeaveDropsPendingIntercepts(t *testing.T) {
	requests := func() []*Pending {
		return []*Pending{
			{
				request: &daemonv1.InterceptRequest{Service: "web", Port: "80", LocalPort: 8080},
				err:     errors.New("no answer"),
			},
			{request: &daemonv1.InterceptRequest{Service: "web", Port: "81", LocalPort: 8081}},
			{request: &daemonv1.InterceptRequest{Workload: "Deployment/worker"}},
			{request: &daemonv1.InterceptRequest{Workload: "consumer"}},
		}
	}
	for name, c := range map[string]struct {
		leave   *daemonv1.LeaveRequest
		dropped int
	}{
		"a service":                 {leave: &daemonv1.LeaveRequest{Service: "web"}, dropped: 2},
		"a port by its number":      {leave: &daemonv1.LeaveRequest{Service: "web", Port: "81"}, dropped: 1},
		"a port by its name":        {leave: &daemonv1.LeaveRequest{Service: "web", Port: "grpc"}, dropped: 1},
		"a port the service lacks":  {leave: &daemonv1.LeaveRequest{Service: "web", Port: "82"}},
		"a workload":                {leave: &daemonv1.LeaveRequest{Service: "worker"}, dropped: 1},
		"a workload with its kind":  {leave: &daemonv1.LeaveRequest{Service: "deployment/worker"}, dropped: 1},
		"a workload without a kind": {leave: &daemonv1.LeaveRequest{Service: "consumer"}, dropped: 1},
		"another service":           {leave: &daemonv1.LeaveRequest{Service: "db"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Config{})
			s.TakeOver(requests())
			ports := servicePorts{{Name: "http", Port: 80}, {Name: "grpc", Port: 81}}
			assert.Len(t, s.dropPendingLocked(c.leave, ports), c.dropped)
			assert.Len(t, s.All(), 4-c.dropped)
		})
	}
	got := requests()[0].describe()
	assert.Equal(t, "Wanted", got.Phase)
	assert.Equal(t, "no answer", got.Message)
}

// A new intercept replaces a pending one for the same requests, and no other on the port.
func TestSameTarget(t *testing.T) {
	request := func(port, user string) *daemonv1.InterceptRequest {
		r := &daemonv1.InterceptRequest{Service: "web", Port: port}
		if user != "" {
			r.Match = &agentv1.Match{User: user}
		}
		return r
	}
	for name, c := range map[string]struct {
		a, b *daemonv1.InterceptRequest
		same bool
	}{
		"all requests of a port":        {a: request("80", ""), b: request("80", ""), same: true},
		"another port":                  {a: request("80", ""), b: request("81", "")},
		"the same requests":             {a: request("80", "eve"), b: request("80", "eve"), same: true},
		"other requests":                {a: request("80", "eve"), b: request("80", "bob")},
		"all and some of a port":        {a: request("80", ""), b: request("80", "bob")},
		"some and all of a port":        {a: request("80", "eve"), b: request("80", "")},
		"the same user on another port": {a: request("80", "eve"), b: request("81", "eve")},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.same, sameTarget(c.a, c.b)) })
	}
}
