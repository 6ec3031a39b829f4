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

// parseMatchFlags parses a command line that has only conditions.
func parseMatchFlags(t *testing.T, args []string) (*agentv1.Match, error) {
	var m matchFlags
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	m.addFlags(f)
	require.NoError(t, f.Parse(args))
	return m.parse()
}

func TestConditionsAndTheRequestThatMeetsThem(t *testing.T) {
	t.Setenv("SUDO_USER", "alice")
	for _, c := range []struct {
		args []string
		want string // description of the conditions
		curl string // command line of a request that meets them
	}{
		{
			want: "all requests",
		},
		{
			args: []string{"--me"},
			want: "requests of alice",
			curl: "curl -H 'x-detour-for: alice' http://catalog.shop/",
		},
		{
			args: []string{"--header", "x-dev=al ice", "--header", "x-debug"},
			want: "header x-dev=al ice, header x-debug",
			curl: "curl -H 'x-dev: al ice' -H 'x-debug: 1' http://catalog.shop/",
		},
		{
			args: []string{"--header", "x-dev~=al.*"},
			want: "header x-dev~=al.*",
		},
		{
			args: []string{"--header", "x-dev=it's"},
			want: "header x-dev=it's",
			curl: `curl -H 'x-dev: it'\''s' http://catalog.shop/`,
		},
		{
			args: []string{"--path-prefix", "/api", "--query", "dev=alice", "--method", "post,put"},
			want: "query dev=alice, paths under /api, method POST or PUT",
			curl: "curl -X POST 'http://catalog.shop/api?dev=alice'",
		},
		{
			args: []string{"--method", "GET, post"},
			want: "method GET or POST",
			curl: "curl http://catalog.shop/",
		},
		{
			args: []string{"--method", "put", "--method", "Patch"},
			want: "method PUT or PATCH",
			curl: "curl -X PUT http://catalog.shop/",
		},
		{
			args: []string{"--header", "x-dev= alice "},
			want: "header x-dev=alice",
			curl: "curl -H 'x-dev: alice' http://catalog.shop/",
		},
		{
			args: []string{"--header", "x-dev~= a"},
			want: "header x-dev~=a",
		},
		{
			args: []string{"--query", "q= a"},
			want: "query q= a",
			curl: "curl 'http://catalog.shop/?q=+a'",
		},
		{
			args: []string{"--method", "HEAD"},
			want: "method HEAD",
			curl: "curl -I http://catalog.shop/",
		},
		{
			args: []string{"--method", "HEAD,PUT"},
			want: "method HEAD or PUT",
			curl: "curl -X PUT http://catalog.shop/",
		},
		{
			args: []string{"--header", "x-dev="},
			want: "header x-dev=",
			curl: "curl -H 'x-dev;' http://catalog.shop/",
		},
		{
			args: []string{"--query", "q=a b&c"},
			want: "query q=a b&c",
			curl: "curl 'http://catalog.shop/?q=a+b%26c'",
		},
		{
			args: []string{"--query", "a b"},
			want: "query a b",
			curl: "curl 'http://catalog.shop/?a+b='",
		},
		{
			args: []string{"--path", "/a b?[1-2]"},
			want: "path /a b?[1-2]",
			curl: "curl http://catalog.shop/a%20b%3F%5B1-2%5D",
		},
		{
			args: []string{"--path", "/a", "--header", "x=y=z"},
			want: "header x=y=z, path /a",
			curl: "curl -H 'x: y=z' http://catalog.shop/a",
		},
	} {
		t.Run(c.want, func(t *testing.T) {
			match, err := parseMatchFlags(t, c.args)
			require.NoError(t, err)
			assert.Equal(t, c.want, route.Describe(match))
			if match == nil {
				return
			}
			i := &daemonv1.Intercept{
				Service: "catalog", Namespace: "shop", ServicePort: 80, Personal: true, LocalPort: 8080,
				Requests: "some",
			}
			assert.Equal(t, c.curl, curlCommand(match, i))
			for rootless, prefix := range map[bool]string{false: "try: curl ", true: "try: detour run -- curl "} {
				var out strings.Builder
				printIntercept(&out, &daemonv1.InterceptRequest{Match: match}, i, rootless)
				assert.Equal(t, c.curl != "", strings.Contains(out.String(), prefix), out.String())
			}
		})
	}
}

func TestInvalidConditionsAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"a header without a name":      {args: []string{"--header", "=alice"}, want: "NAME=VALUE"},
		"a header name with a space":   {args: []string{"--header", "x dev=alice"}, want: "NAME=VALUE"},
		"a header in the form of curl": {args: []string{"--header", "x-dev: alice"}, want: "NAME=VALUE"},
		"an invalid header name": {
			args: []string{"--header", "x(dev)=alice"},
			want: "is not a valid header name",
		},
		"an invalid regular expression": {args: []string{"--header", "x~=("}, want: "missing"},
		"two conditions on the path": {
			args: []string{"--path", "/a", "--path-prefix", "/b"},
			want: "exclude each other",
		},
		"a relative path": {args: []string{"--path", "a"}, want: "does not begin"},
		"an empty method": {args: []string{"--method", "GET,"}, want: `"" is not a valid method`},
		"two methods with a space": {
			args: []string{"--method", "get post"},
			want: `"GET POST" is not a valid method`,
		},
		// An unset variable of the shell makes flags empty. Without a condition the intercept would
		// be global.
		"an empty path":            {args: []string{"--path", ""}, want: "--path is empty"},
		"an empty prefix":          {args: []string{"--path-prefix", ""}, want: "--path-prefix is empty"},
		"an empty list of methods": {args: []string{"--method", ""}, want: "--method is empty"},
		"an empty header":          {args: []string{"--header", ""}, want: "NAME=VALUE"},
		"an empty query parameter": {args: []string{"--query", ""}, want: "NAME=VALUE"},
		"an empty prefix beside a condition": {
			args: []string{"--me", "--path-prefix="},
			want: "--path-prefix is empty",
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseMatchFlags(t, c.args)
			require.ErrorContains(t, err, c.want)
		})
	}
}

// A condition means the same if the user types it as detour prints it.
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
