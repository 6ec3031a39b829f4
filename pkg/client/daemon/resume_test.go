package daemon

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// What could not be asked for again is shown with the reason, and can be left as any other.
func TestForget(t *testing.T) {
	requests := func() []*wanted {
		return []*wanted{
			{request: &daemonv1.InterceptRequest{Service: "web", Port: "80", LocalPort: 8080}, err: errors.New("no answer")},
			{request: &daemonv1.InterceptRequest{Service: "web", Port: "81", LocalPort: 8081}},
			{request: &daemonv1.InterceptRequest{Workload: "Deployment/worker"}},
			{request: &daemonv1.InterceptRequest{Workload: "consumer"}},
		}
	}
	for name, c := range map[string]struct {
		leave *daemonv1.LeaveRequest
		want  int // how many are left
	}{
		"a service":          {&daemonv1.LeaveRequest{Service: "web"}, 2},
		"a port of it":       {&daemonv1.LeaveRequest{Service: "web", Port: "81"}, 1},
		"by its name":        {&daemonv1.LeaveRequest{Service: "web", Port: "grpc"}, 1},
		"a port it has not":  {&daemonv1.LeaveRequest{Service: "web", Port: "82"}, 0},
		"a workload":         {&daemonv1.LeaveRequest{Service: "worker"}, 1},
		"with its kind":      {&daemonv1.LeaveRequest{Service: "deployment/worker"}, 1},
		"one without a kind": {&daemonv1.LeaveRequest{Service: "consumer"}, 1},
		"another":            {&daemonv1.LeaveRequest{Service: "db"}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := &session{wanted: requests()}
			assert.Len(t, s.forget(c.leave, servicePorts{{Name: "http", Port: 80}, {Name: "grpc", Port: 81}}), c.want)
			assert.Len(t, s.wanted, 4-c.want)
		})
	}
	got := requests()[0].describe()
	assert.Equal(t, "Wanted", got.Phase)
	assert.Equal(t, "no answer", got.Message)
}

// A new intercept takes the place of a wish for the same requests, and of no other on the port.
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
		"all of a port":           {request("80", ""), request("80", ""), true},
		"another port":            {request("80", ""), request("81", ""), false},
		"the same requests":       {request("80", "eve"), request("80", "eve"), true},
		"other requests":          {request("80", "eve"), request("80", "bob"), false},
		"all and some of a port":  {request("80", ""), request("80", "bob"), false},
		"some and all of a port":  {request("80", "eve"), request("80", ""), false},
		"some of an other's port": {request("80", "eve"), request("81", "eve"), false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.same, sameTarget(c.a, c.b)) })
	}
}
