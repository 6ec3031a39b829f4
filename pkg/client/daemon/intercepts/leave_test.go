package intercepts

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func interceptOf(name, service, port string, number int32) *local {
	i := detour.Intercept{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: detour.InterceptSpec{Service: service},
		Status: detour.InterceptStatus{ServicePort: number},
	}
	if port != "" {
		p := intstr.Parse(port)
		i.Spec.Port = &p
	}
	return &local{object: i}
}

// A port is the same one whether it was written as its number, as its name, or not at all.
func TestSelectByServiceAndPort(t *testing.T) {
	all := []*local{
		interceptOf("web-a", "web", "http", 80),
		interceptOf("web-b", "web", "9090", 9090),
		interceptOf("db-a", "db", "", 5432),
	}
	ports := map[string]servicePorts{
		"web": {{Name: "http", Port: 80}, {Name: "grpc", Port: 9090}, {Name: "admin", Port: 81}},
		"db":  {{Name: "postgres", Port: 5432}},
	}
	for name, c := range map[string]struct {
		service, port string
		unreadable    bool // the service's ports could not be read
		none          bool // the laptop has no intercepts
		want          []string
		err           string
	}{
		"all of a service":                {service: "web", want: []string{"web-a", "web-b"}},
		"by the intercept's name":         {service: "web-b", want: []string{"web-b"}},
		"as the port was written":         {service: "web", port: "http", want: []string{"web-a"}},
		"the number of a name":            {service: "web", port: "80", want: []string{"web-a"}},
		"the name of a number":            {service: "web", port: "grpc", want: []string{"web-b"}},
		"the number of an unwritten port": {service: "db", port: "5432", want: []string{"db-a"}},
		"the name of an unwritten port":   {service: "db", port: "postgres", want: []string{"db-a"}},
		"a number, ports unreadable":      {service: "web", port: "80", unreadable: true, want: []string{"web-a"}},
		"a name, ports unreadable":        {service: "web", port: "http", unreadable: true, want: []string{"web-a"}},
		"another port": {
			service: "web", port: "admin",
			err: "port admin of web is not intercepted by this laptop: it intercepts port 9090, http",
		},
		"another port than the only one": {
			service: "db", port: "80",
			err: "port 80 of db is not intercepted by this laptop: it intercepts port 5432",
		},
		"another service": {
			service: "stock", err: "stock is not intercepted by this laptop: it intercepts db, web",
		},
		"without intercepts": {service: "web", none: true, err: "there is no intercept to leave"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Config{})
			for _, l := range all {
				if !c.none {
					s.active[l.object.Name] = l
				}
			}
			of := ports[c.service]
			if c.unreadable {
				of = nil
			}
			got, err := s.selectLocked(&daemonv1.LeaveRequest{Service: c.service, Port: c.port}, of)
			assert.ElementsMatch(t, c.want, got)
			if c.err != "" {
				require.EqualError(t, err, c.err)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// The intercepts of a session that is made again have new names. `detour intercept -- COMMAND`
// knows only the first one.
func TestLeaveByAFormerName(t *testing.T) {
	before := New(Config{})
	before.active["web-a"] = &local{
		object:  detour.Intercept{ObjectMeta: metav1.ObjectMeta{Name: "web-a"}},
		request: &daemonv1.InterceptRequest{Service: "web"},
	}
	again := func(before *Set, name string) *Set {
		p := before.All()[0]
		l := interceptOf(name, "web", "", 0)
		l.request, l.formerNames = p.request, p.formerNames
		s := New(Config{})
		s.active[name] = l
		return s
	}
	now := again(again(before, "web-b"), "web-c")
	for _, name := range []string{"web-a", "web-b", "web-c"} {
		got, err := now.selectLocked(&daemonv1.LeaveRequest{Service: name}, nil)
		require.NoError(t, err, name)
		require.Equal(t, []string{"web-c"}, got)
	}
	next := New(Config{})
	next.TakeOver(now.All())
	dropped := next.dropPendingLocked(&daemonv1.LeaveRequest{Service: "web-a"}, nil)
	require.Len(t, dropped, 1, "before there is a new object")
	require.Empty(t, next.All())
}
