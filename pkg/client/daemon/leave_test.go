package daemon

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// A port is the same whether it is said by its number or its name, or was not said at all.
func TestMeant(t *testing.T) {
	intercept := func(name, service, port string, number int32) *localIntercept {
		i := detour.Intercept{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: detour.InterceptSpec{Service: service}, Status: detour.InterceptStatus{ServicePort: number}}
		if port != "" {
			p := intstr.Parse(port)
			i.Spec.Port = &p
		}
		return &localIntercept{object: i}
	}
	all := []*localIntercept{
		intercept("web-a", "web", "http", 80),
		intercept("web-b", "web", "9090", 9090),
		intercept("db-a", "db", "", 5432),
	}
	ports := map[string]servicePorts{
		"web": {{Name: "http", Port: 80}, {Name: "grpc", Port: 9090}, {Name: "admin", Port: 81}},
		"db":  {{Name: "postgres", Port: 5432}},
	}
	for name, c := range map[string]struct {
		service, port string
		unread        bool // the service's ports could not be read
		have          []*localIntercept
		want          []string
		err           string
	}{
		"all of a service":          {"web", "", false, all, []string{"web-a", "web-b"}, ""},
		"by its own name":           {"web-b", "", false, all, []string{"web-b"}, ""},
		"as it was said":            {"web", "http", false, all, []string{"web-a"}, ""},
		"the number of a name":      {"web", "80", false, all, []string{"web-a"}, ""},
		"the name of a number":      {"web", "grpc", false, all, []string{"web-b"}, ""},
		"what was not said":         {"db", "5432", false, all, []string{"db-a"}, ""},
		"its name":                  {"db", "postgres", false, all, []string{"db-a"}, ""},
		"a number, not to be read":  {"web", "80", true, all, []string{"web-a"}, ""},
		"a name, not to be read":    {"web", "http", true, all, []string{"web-a"}, ""},
		"another port":              {"web", "admin", false, all, nil, "port admin of web is not intercepted by this laptop: it intercepts port 9090, http"},
		"another port than the one": {"db", "80", false, all, nil, "port 80 of db is not intercepted by this laptop: it intercepts port 5432"},
		"another service":           {"stock", "", false, all, nil, "stock is not intercepted by this laptop: it intercepts db, web"},
		"nothing":                   {"web", "", false, nil, nil, "there is no intercept to leave"},
	} {
		t.Run(name, func(t *testing.T) {
			s := &session{intercepts: map[string]*localIntercept{}}
			for _, l := range c.have {
				s.intercepts[l.object.Name] = l
			}
			of := ports[c.service]
			if c.unread {
				of = nil
			}
			got, err := s.meant(&daemonv1.LeaveRequest{Service: c.service, Port: c.port}, of)
			assert.ElementsMatch(t, c.want, got)
			if c.err != "" {
				require.EqualError(t, err, c.err)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

// A session that is made again after a sleep has new intercepts for the old ones, with other names. `detour intercept -- COMMAND` knows only the first.
func TestLeaveByAFormerName(t *testing.T) {
	before := &session{intercepts: map[string]*localIntercept{"web-a": {object: detour.Intercept{ObjectMeta: metav1.ObjectMeta{Name: "web-a"}}, request: &daemonv1.InterceptRequest{Service: "web"}}}}
	again := func(s *session, name string) *session {
		w := s.wishes()[0]
		i := detour.Intercept{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: detour.InterceptSpec{Service: "web"}}
		return &session{intercepts: map[string]*localIntercept{name: {object: i, request: w.request, was: w.was}}}
	}
	now := again(again(before, "web-b"), "web-c")
	for _, name := range []string{"web-a", "web-b", "web-c"} {
		got, err := now.meant(&daemonv1.LeaveRequest{Service: name}, nil)
		require.NoError(t, err, name)
		require.Equal(t, []string{"web-c"}, got)
	}
	wanting := &session{wanted: now.wishes()}
	require.Len(t, wanting.forget(&daemonv1.LeaveRequest{Service: "web-a"}, nil), 1, "before there is a new one")
	require.Empty(t, wanting.wanted)
}
