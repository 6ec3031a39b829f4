package cli

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/route"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
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
		{[]string{"--path-prefix", "/api", "--query", "dev=alice", "--method", "post,put"}, "query dev=alice, paths " +
			"under /api, method POST or PUT", "curl -X POST 'http://catalog.shop/api?dev=alice'"},
		{[]string{"--method", "GET, post"}, "method GET or POST", "curl http://catalog.shop/"},
		{[]string{"--method", "put", "--method", "Patch"}, "method PUT or PATCH", "curl -X PUT http://catalog.shop/"},
		{[]string{"--header", "x-dev= alice "}, "header x-dev=alice", "curl -H 'x-dev: alice' http://catalog.shop/"},
		{[]string{"--header", "x-dev~= a"}, "header x-dev~=a", ""},
		{[]string{"--query", "q= a"}, "query q= a", "curl 'http://catalog.shop/?q=+a'"},
		{[]string{"--method", "HEAD"}, "method HEAD", "curl -I http://catalog.shop/"},
		{[]string{"--method", "HEAD,PUT"}, "method HEAD or PUT", "curl -X PUT http://catalog.shop/"},
		{[]string{"--header", "x-dev="}, "header x-dev=", "curl -H 'x-dev;' http://catalog.shop/"},
		{[]string{"--query", "q=a b&c"}, "query q=a b&c", "curl 'http://catalog.shop/?q=a+b%26c'"},
		{[]string{"--query", "a b"}, "query a b", "curl 'http://catalog.shop/?a+b='"},
		{[]string{"--path", "/a b?[1-2]"}, "path /a b?[1-2]", "curl http://catalog.shop/a%20b%3F%5B1-2%5D"},
		{[]string{"--path", "/a", "--header", "x=y=z"}, "header x=y=z, path /a", "curl -H 'x: y=z' " +
			"http://catalog.shop/a"},
	} {
		var m matchFlags
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		m.addFlags(f)
		require.NoError(t, f.Parse(c.args))
		match, err := m.parse()
		require.NoError(t, err)
		assert.Equal(t, c.want, route.Describe(match))
		if match != nil {
			i := &daemonv1.Intercept{
				Service: "catalog", Namespace: "shop", ServicePort: 80, Personal: true,
				LocalPort: 8080, Requests: "some",
			}
			assert.Equal(t, c.curl, curlCommand(match, i))
			for rootless, prefix := range map[bool]string{false: "try: curl ", true: "try: detour run -- curl "} {
				var out strings.Builder
				printIntercept(&out, &daemonv1.InterceptRequest{Match: match}, i, rootless)
				assert.Equal(t, c.curl != "", strings.Contains(out.String(), prefix), out.String())
			}
		}
	}
	for _, c := range []struct {
		said string
		args []string
	}{
		{"NAME=VALUE", []string{"--header", "=alice"}},
		{"exclude each other", []string{"--path", "/a", "--path-prefix", "/b"}},
		{"does not begin", []string{"--path", "a"}},
		{"missing", []string{"--header", "x~=("}},
		{"NAME=VALUE", []string{"--header", "x dev=alice"}},
		{"NAME=VALUE", []string{"--header", "x-dev: alice"}},
		{"is not a valid header name", []string{"--header", "x(dev)=alice"}},
		{"\"\" is not a valid method", []string{"--method", "GET,"}},
		{"\"GET POST\" is not a valid method", []string{"--method", "get post"}},
		// As a shell makes them of a variable that is not set. No condition at all would take
		// everybody's traffic.
		{"--path is empty", []string{"--path", ""}},
		{"--path-prefix is empty", []string{"--path-prefix", ""}},
		{"--method is empty", []string{"--method", ""}},
		{"NAME=VALUE", []string{"--header", ""}},
		{"NAME=VALUE", []string{"--query", ""}},
		{"--path-prefix is empty", []string{"--me", "--path-prefix="}},
	} {
		var m matchFlags
		f := pflag.NewFlagSet("", pflag.ContinueOnError)
		m.addFlags(f)
		require.NoError(t, f.Parse(c.args))
		_, err := m.parse()
		assert.ErrorContains(t, err, c.said, "%q", c.args)
	}
}

// What a condition is printed as means the same when it is typed.
func FuzzParseValueMatch(f *testing.F) {
	for _, text := range []string{"x-dev=alice", "x-dev~=al.*", "x-dev", "x~", "x~~=", "=", "~=x", "a==b"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		v, ok := parseValueMatch(text)
		if !ok {
			return
		}
		printed := route.Describe(&agentv1.Match{Query: []*agentv1.ValueMatch{v}})
		again, ok := parseValueMatch(strings.TrimPrefix(printed, "query "))
		require.True(t, ok, printed)
		require.True(t, proto.Equal(v, again), "%q is printed as %q", text, printed)
	})
}
