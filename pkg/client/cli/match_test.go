package cli

import (
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/traffic/route"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func TestMatchFlags(t *testing.T) {
	t.Setenv("SUDO_USER", "alice")
	for _, c := range []struct {
		args []string
		want string // in words
		curl string
	}{
		{nil, "all requests", ""},
		{[]string{"--me"}, "requests of alice", "curl -H 'x-detour-for: alice' http://catalog.shop/"},
		{[]string{"--header", "x-dev=al ice", "--header", "x-debug"}, "header x-dev=al ice, header x-debug", "curl -H 'x-dev: al ice' -H 'x-debug: 1' http://catalog.shop/"},
		{[]string{"--header", "x-dev~=al.*"}, "header x-dev~=al.*", ""},
		{[]string{"--header", "x-dev=it's"}, "header x-dev=it's", `curl -H 'x-dev: it'\''s' http://catalog.shop/`},
		{[]string{"--path-prefix", "/api", "--query", "dev=alice", "--method", "post,put"}, "query dev=alice, paths under /api, method POST or PUT", "curl -X POST 'http://catalog.shop/api?dev=alice'"},
		{[]string{"--method", "GET, post"}, "method GET or POST", "curl -X GET http://catalog.shop/"},
		{[]string{"--method", "put", "--method", "Patch"}, "method PUT or PATCH", "curl -X PUT http://catalog.shop/"},
		{[]string{"--header", "x-dev= alice "}, "header x-dev=alice", "curl -H 'x-dev: alice' http://catalog.shop/"},
		{[]string{"--header", "x-dev~= a"}, "header x-dev~=a", ""},
		{[]string{"--path", "/a", "--header", "x=y=z"}, "header x=y=z, path /a", "curl -H 'x: y=z' http://catalog.shop/a"},
	} {
		var m matchFlags
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		m.add(f)
		require.NoError(t, f.Parse(c.args))
		match, err := m.match()
		require.NoError(t, err)
		assert.Equal(t, c.want, route.Describe(match))
		if match != nil {
			assert.Equal(t, c.curl, curl(match, &daemonv1.Intercept{Service: "catalog", Namespace: "shop", ServicePort: 80}))
		}
	}
	for _, c := range []struct {
		said string
		args []string
	}{
		{"NAME=VALUE", []string{"--header", "=alice"}},
		{"not both", []string{"--path", "/a", "--path-prefix", "/b"}},
		{"does not begin", []string{"--path", "a"}},
		{"missing", []string{"--header", "x~=("}},
		{"NAME=VALUE", []string{"--header", "x dev=alice"}},
		{"NAME=VALUE", []string{"--header", "x-dev: alice"}},
		{"no name of a header", []string{"--header", "x(dev)=alice"}},
		{"method \"\" is none", []string{"--method", "GET,"}},
		{"method \"GET POST\" is none", []string{"--method", "get post"}},
		// As a shell makes them of a variable that is not set. No condition at all would take everybody's traffic.
		{"--path is empty", []string{"--path", ""}},
		{"--path-prefix is empty", []string{"--path-prefix", ""}},
		{"--method is empty", []string{"--method", ""}},
		{"NAME=VALUE", []string{"--header", ""}},
		{"NAME=VALUE", []string{"--query", ""}},
		{"--path-prefix is empty", []string{"--me", "--path-prefix="}},
	} {
		var m matchFlags
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		m.add(f)
		require.NoError(t, f.Parse(c.args))
		_, err := m.match()
		assert.ErrorContains(t, err, c.said, "%q", c.args)
	}
}
