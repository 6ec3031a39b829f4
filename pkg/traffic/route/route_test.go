package route

import (
	"net/http"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

func header(name, value string) *agentv1.Match {
	return &agentv1.Match{Headers: []*agentv1.ValueMatch{{Name: name, Value: value}}}
}

func pattern(name, value string) *agentv1.ValueMatch {
	return &agentv1.ValueMatch{Name: name, Type: agentv1.MatchType_MATCH_TYPE_REGEX, Value: value}
}

func TestMatches(t *testing.T) {
	present := &agentv1.ValueMatch{Name: "x-debug", Type: agentv1.MatchType_MATCH_TYPE_PRESENT}
	for name, c := range map[string]struct {
		match   *agentv1.Match
		request string // "METHOD target"
		fields  http.Header
		want    bool
	}{
		"exact header, whatever its case":      {header("x-dev", "alice"), "GET /", http.Header{"X-Dev": {"alice"}}, true},
		"another value":                        {header("x-dev", "alice"), "GET /", http.Header{"X-Dev": {"Alice"}}, false},
		"one of several values":                {header("x-dev", "alice"), "GET /", http.Header{"X-Dev": {"bob", "alice"}}, true},
		"no header":                            {header("x-dev", "alice"), "GET /", nil, false},
		"regular expression of the whole":      {&agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x-dev", "a.*e")}}, "GET /", http.Header{"X-Dev": {"alice"}}, true},
		"regular expression of a part":         {&agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x-dev", "lic")}}, "GET /", http.Header{"X-Dev": {"alice"}}, false},
		"regular expression with alternatives": {&agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x-dev", "a|b")}}, "GET /", http.Header{"X-Dev": {"ax"}}, false},
		"present":                              {&agentv1.Match{Headers: []*agentv1.ValueMatch{present}}, "GET /", http.Header{"X-Debug": {""}}, true},
		"not present":                          {&agentv1.Match{Headers: []*agentv1.ValueMatch{present}}, "GET /", nil, false},
		"all must hold":                        {&agentv1.Match{Headers: header("x-dev", "alice").Headers, Methods: []string{"POST"}}, "GET /", http.Header{"X-Dev": {"alice"}}, false},
		"path":                                 {&agentv1.Match{Path: "/api"}, "GET /api?x=1", nil, true},
		"longer path":                          {&agentv1.Match{Path: "/api"}, "GET /api/x", nil, false},
		"encoded path":                         {&agentv1.Match{Path: "/a b"}, "GET /a%20b", nil, true},
		"path of a whole URL":                  {&agentv1.Match{Path: "/api"}, "GET http://catalog/api", nil, true},
		"below the prefix":                     {&agentv1.Match{PathPrefix: "/api"}, "GET /api/x", nil, true},
		"the prefix itself":                    {&agentv1.Match{PathPrefix: "/api/"}, "GET /api", nil, true},
		"not a whole segment":                  {&agentv1.Match{PathPrefix: "/api"}, "GET /apix", nil, false},
		"every path":                           {&agentv1.Match{PathPrefix: "/"}, "GET /x", nil, true},
		"query":                                {&agentv1.Match{Query: []*agentv1.ValueMatch{{Name: "dev", Value: "al ice"}}}, "GET /?a=b&dev=al+ice", nil, true},
		"no query":                             {&agentv1.Match{Query: []*agentv1.ValueMatch{{Name: "dev", Value: "alice"}}}, "GET /", nil, false},
		"method":                               {&agentv1.Match{Methods: []string{"PUT", "POST"}}, "POST /", nil, true},
		"all of a server":                      {&agentv1.Match{Path: "/"}, "OPTIONS *", nil, false},
		"user by header":                       {&agentv1.Match{User: "alice"}, "GET /", http.Header{"X-Detour-For": {"alice"}}, true},
		"user by baggage":                      {&agentv1.Match{User: "alice"}, "GET /", http.Header{"Baggage": {"a=b, detour = alice ;ttl=1,c=d"}}, true},
		"user by encoded baggage":              {&agentv1.Match{User: "al ice"}, "GET /", http.Header{"Baggage": {"detour=al%20ice"}}, true},
		"another member":                       {&agentv1.Match{User: "alice"}, "GET /", http.Header{"Baggage": {"xdetour=alice"}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := Compile(c.match)
			require.NoError(t, err)
			method, target, _ := cut(c.request)
			assert.Equal(t, c.want, m.Matches(&Request{Method: method, Target: target, Values: c.fields.Values}))
		})
	}
}

func cut(s string) (string, string, bool) {
	for i := range s {
		if s[i] == ' ' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func TestCompileRefuses(t *testing.T) {
	for said, m := range map[string]*agentv1.Match{
		"without conditions": {},
		"not both":           {Path: "/a", PathPrefix: "/b"},
		"does not begin":     {Path: "a"},
		"without a name":     {Headers: []*agentv1.ValueMatch{{Value: "x"}}},
		"missing closing )":  {Headers: []*agentv1.ValueMatch{pattern("x", "(")}},

		// What no request can have, so that nothing would ever match.
		`the method " POST" is none`:              {Methods: []string{"GET", " POST"}},
		`the method "" is none`:                   {Methods: []string{""}},
		`"x dev" is no name of a header`:          header("x dev", "alice"),
		`"x-dev:" is no name of a header`:         header("x-dev:", "alice"),
		`header x-dev cannot have the value " a`:  header("x-dev", " alice"),
		`header x-dev cannot have the value "a\n`: header("x-dev", "a\nb: c"),
	} {
		_, err := Compile(m)
		assert.ErrorContains(t, err, said)
	}
}

// From the most specific to the least; each comes before all that follow it.
func TestOrder(t *testing.T) {
	ordered := []*agentv1.Match{
		{Path: "/a", Headers: header("x", "1").Headers},
		{Path: "/a"},
		{PathPrefix: "/api/v1"},
		{PathPrefix: "/api", Headers: header("x", "1").Headers},
		{PathPrefix: "/api"},
		{Headers: append(header("x", "1").Headers, header("y", "1").Headers...)},
		header("x", "1"),
		{Headers: []*agentv1.ValueMatch{pattern("x", ".*")}},
		{Query: header("q", "1").Headers},
		{User: "alice"},
		{Methods: []string{"GET"}},
	}
	for i, a := range ordered {
		for j, b := range ordered {
			assert.Equal(t, i < j, Compare(a, b) < 0, "%d %d", i, j)
			assert.Equal(t, i == j, Compare(a, b) == 0, "%d %d", i, j)
			if i != j {
				assert.False(t, Ambiguous(a, b))
			}
		}
		assert.False(t, Ambiguous(a, nil), "personal wins over global")
	}
	assert.True(t, Ambiguous(nil, nil))
}

func TestAmbiguous(t *testing.T) {
	for name, c := range map[string]struct {
		a, b *agentv1.Match
		want bool
	}{
		"the same":                     {header("x-dev", "alice"), header("x-dev", "alice"), true},
		"different values":             {header("x-dev", "alice"), header("X-Dev", "bob"), false},
		"different headers":            {header("x-dev", "alice"), header("x-team", "red"), true},
		"two users":                    {&agentv1.Match{User: "alice"}, &agentv1.Match{User: "bob"}, false},
		"one user twice":               {&agentv1.Match{User: "alice"}, &agentv1.Match{User: "alice"}, true},
		"a header and a user":          {header("x-dev", "alice"), &agentv1.Match{User: "bob"}, false},
		"two patterns":                 {&agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x", "a")}}, &agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x", "b")}}, true},
		"two paths":                    {&agentv1.Match{Path: "/a"}, &agentv1.Match{Path: "/b"}, false},
		"two prefixes of one length":   {&agentv1.Match{PathPrefix: "/a"}, &agentv1.Match{PathPrefix: "/b"}, false},
		"different methods":            {&agentv1.Match{Methods: []string{"GET"}}, &agentv1.Match{Methods: []string{"PUT", "POST"}}, false},
		"methods of which one is both": {&agentv1.Match{Methods: []string{"GET", "PUT"}}, &agentv1.Match{Methods: []string{"PUT"}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, Ambiguous(c.a, c.b))
			assert.Equal(t, c.want, Ambiguous(c.b, c.a))
		})
	}
}

func TestDescribe(t *testing.T) {
	assert.Equal(t, "all requests", Describe(nil))
	assert.Equal(t, "requests of alice, header x=1, query z~=.*, path /a, method GET", Describe(&agentv1.Match{
		User: "alice", Headers: header("x", "1").Headers, Query: []*agentv1.ValueMatch{pattern("z", ".*")}, Path: "/a", Methods: []string{"GET"},
	}))
}

// Two matches that both take a request are ordered or ambiguous, whatever they are.
func FuzzAmbiguous(f *testing.F) {
	f.Add("alice", "bob", "/a", "/a/b", "GET", "x", "1")
	f.Fuzz(func(t *testing.T, user1, user2, prefix1, prefix2, method, name, value string) {
		a := &agentv1.Match{User: user1, PathPrefix: prefix1, Headers: header(name, value).Headers}
		b := &agentv1.Match{User: user2, PathPrefix: prefix2, Methods: []string{method}}
		x, err := Compile(a)
		if err != nil {
			return
		}
		y, err := Compile(b)
		if err != nil {
			return
		}
		for _, target := range []string{prefix1, prefix2, prefix1 + prefix2} {
			r := &Request{Method: method, Target: target, Values: func(n string) []string {
				switch n {
				case name:
					return []string{value}
				case UserHeader:
					return slices.Compact([]string{user1, user2})
				}
				return nil
			}}
			if x.Matches(r) && y.Matches(r) && Compare(a, b) == 0 && !Ambiguous(a, b) && user1 == user2 {
				t.Fatalf("%v and %v take %s", a, b, target)
			}
		}
	})
}
