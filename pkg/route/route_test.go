package route

import (
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strings"
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
		"exact header, whatever its case": {
			match:   header("x-dev", "alice"),
			request: "GET /", fields: http.Header{"X-Dev": {"alice"}}, want: true,
		},
		"another value": {
			match:   header("x-dev", "alice"),
			request: "GET /", fields: http.Header{"X-Dev": {"Alice"}}, want: false,
		},
		"one of several values": {
			match:   header("x-dev", "alice"),
			request: "GET /", fields: http.Header{"X-Dev": {"bob", "alice"}}, want: true,
		},
		"no header": {match: header("x-dev", "alice"), request: "GET /", want: false},
		"regular expression of the whole": {
			match:   &agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x-dev", "a.*e")}},
			request: "GET /", fields: http.Header{"X-Dev": {"alice"}}, want: true,
		},
		"regular expression of a part": {
			match:   &agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x-dev", "lic")}},
			request: "GET /", fields: http.Header{"X-Dev": {"alice"}}, want: false,
		},
		"regular expression with alternatives": {
			match:   &agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x-dev", "a|b")}},
			request: "GET /", fields: http.Header{"X-Dev": {"ax"}}, want: false,
		},
		"present": {
			match:   &agentv1.Match{Headers: []*agentv1.ValueMatch{present}},
			request: "GET /", fields: http.Header{"X-Debug": {""}}, want: true,
		},
		"not present": {
			match:   &agentv1.Match{Headers: []*agentv1.ValueMatch{present}},
			request: "GET /", want: false,
		},
		"one condition of two": {
			match:   &agentv1.Match{Headers: header("x-dev", "alice").Headers, Methods: []string{"POST"}},
			request: "GET /", fields: http.Header{"X-Dev": {"alice"}}, want: false,
		},
		"path":                {match: &agentv1.Match{Path: "/api"}, request: "GET /api?x=1", want: true},
		"longer path":         {match: &agentv1.Match{Path: "/api"}, request: "GET /api/x", want: false},
		"encoded path":        {match: &agentv1.Match{Path: "/a b"}, request: "GET /a%20b", want: true},
		"path of a whole URL": {match: &agentv1.Match{Path: "/api"}, request: "GET http://catalog/api", want: true},
		"below the prefix":    {match: &agentv1.Match{PathPrefix: "/api"}, request: "GET /api/x", want: true},
		"the prefix itself":   {match: &agentv1.Match{PathPrefix: "/api/"}, request: "GET /api", want: true},
		"not a whole segment": {match: &agentv1.Match{PathPrefix: "/api"}, request: "GET /apix", want: false},
		"every path":          {match: &agentv1.Match{PathPrefix: "/"}, request: "GET /x", want: true},
		"query": {
			match:   &agentv1.Match{Query: []*agentv1.ValueMatch{{Name: "dev", Value: "al ice"}}},
			request: "GET /?a=b&dev=al+ice", want: true,
		},
		"no query": {
			match:   &agentv1.Match{Query: []*agentv1.ValueMatch{{Name: "dev", Value: "alice"}}},
			request: "GET /", want: false,
		},
		"method":           {match: &agentv1.Match{Methods: []string{"PUT", "POST"}}, request: "POST /", want: true},
		"the whole server": {match: &agentv1.Match{Path: "/"}, request: "OPTIONS *", want: false},
		"user by header": {
			match:   &agentv1.Match{User: "alice"},
			request: "GET /", fields: http.Header{"X-Detour-For": {"alice"}}, want: true,
		},
		"user by baggage": {
			match:   &agentv1.Match{User: "alice"},
			request: "GET /", fields: http.Header{"Baggage": {"a=b, detour = alice ;ttl=1,c=d"}}, want: true,
		},
		"user by encoded baggage": {
			match:   &agentv1.Match{User: "al ice"},
			request: "GET /", fields: http.Header{"Baggage": {"detour=al%20ice"}}, want: true,
		},
		"another member": {
			match:   &agentv1.Match{User: "alice"},
			request: "GET /", fields: http.Header{"Baggage": {"xdetour=alice"}}, want: false,
		},
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

func TestCompileRefusesConditionsThatNoRequestMeets(t *testing.T) {
	for message, m := range map[string]*agentv1.Match{
		"has no conditions": {},
		"only one of them":  {Path: "/a", PathPrefix: "/b"},
		"does not begin":    {Path: "a"},
		"has no name":       {Headers: []*agentv1.ValueMatch{{Value: "x"}}},
		"missing closing )": {Headers: []*agentv1.ValueMatch{pattern("x", "(")}},

		// No request can meet these, so nothing would ever match.
		`" POST" is not a valid method`:       {Methods: []string{"GET", " POST"}},
		`"" is not a valid method`:            {Methods: []string{""}},
		`"x dev" is not a valid header name`:  header("x dev", "alice"),
		`"x-dev:" is not a valid header name`: header("x-dev:", "alice"),
		`" alice" is not a valid value`:       header("x-dev", " alice"),
		`"a\nb: c" is not a valid value`:      header("x-dev", "a\nb: c"),
	} {
		_, err := Compile(m)
		assert.ErrorContains(t, err, message)
	}
}

// The list goes from the most specific match to the least: each comes before all that follow it.
func TestCompareOrdersBySpecificity(t *testing.T) {
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
		assert.False(t, Ambiguous(a, nil), "a personal intercept wins over a global one")
	}
	assert.True(t, Ambiguous(nil, nil))
}

func TestAmbiguous(t *testing.T) {
	for name, c := range map[string]struct {
		a, b *agentv1.Match
		want bool
	}{
		"the same":            {a: header("x-dev", "alice"), b: header("x-dev", "alice"), want: true},
		"different values":    {a: header("x-dev", "alice"), b: header("X-Dev", "bob"), want: false},
		"different headers":   {a: header("x-dev", "alice"), b: header("x-team", "red"), want: true},
		"two users":           {a: &agentv1.Match{User: "alice"}, b: &agentv1.Match{User: "bob"}, want: false},
		"one user twice":      {a: &agentv1.Match{User: "alice"}, b: &agentv1.Match{User: "alice"}, want: true},
		"a header and a user": {a: header("x-dev", "alice"), b: &agentv1.Match{User: "bob"}, want: false},
		"two patterns": {
			a:    &agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x", "a")}},
			b:    &agentv1.Match{Headers: []*agentv1.ValueMatch{pattern("x", "b")}},
			want: true,
		},
		"two paths": {a: &agentv1.Match{Path: "/a"}, b: &agentv1.Match{Path: "/b"}, want: false},
		"two prefixes of one length": {
			a:    &agentv1.Match{PathPrefix: "/a"},
			b:    &agentv1.Match{PathPrefix: "/b"},
			want: false,
		},
		"different methods": {
			a:    &agentv1.Match{Methods: []string{"GET"}},
			b:    &agentv1.Match{Methods: []string{"PUT", "POST"}},
			want: false,
		},
		"methods of which one is both": {
			a:    &agentv1.Match{Methods: []string{"GET", "PUT"}},
			b:    &agentv1.Match{Methods: []string{"PUT"}},
			want: true,
		},
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
		User: "alice", Headers: header("x", "1").Headers, Query: []*agentv1.ValueMatch{pattern("z", ".*")},
		Path: "/a", Methods: []string{"GET"},
	}))
}

// choices makes a match or a request of bytes. It uses so few names and values that many matches
// overlap.
type choices []byte

func (m *choices) pick(options ...string) string {
	if len(*m) == 0 {
		return options[0]
	}
	i := int((*m)[0]) % len(options)
	*m = (*m)[1:]
	return options[i]
}

var (
	someNames = []string{"x", "y", UserHeader}
	somePaths = []string{"/", "/a", "/a/", "/a/b", "/ab", "/a//", "//", "/a b"}
	someUsers = []string{"", "alice", "bob", "alice", "bob"}
)

func (m *choices) values() (all []*agentv1.ValueMatch) {
	for range 2 {
		if name := m.pick(append(someNames, "", "", "", "", "")...); name != "" {
			all = append(all, map[string]*agentv1.ValueMatch{
				"exact":   {Name: name, Value: "alice"},
				"other":   {Name: strings.ToUpper(name), Value: "bob"},
				"present": {Name: name, Type: agentv1.MatchType_MATCH_TYPE_PRESENT},
				"regex":   pattern(name, "alice|bob"),
				"any":     pattern(name, ".*"),
			}[m.pick("exact", "other", "present", "regex", "any")])
		}
	}
	return all
}

func (m *choices) match() *agentv1.Match {
	spec := &agentv1.Match{User: m.pick("", "", "", "alice", "bob"), Headers: m.values(), Query: m.values()}
	switch m.pick("", "path", "prefix") {
	case "path":
		spec.Path = m.pick(somePaths...)
	case "prefix":
		spec.PathPrefix = m.pick(somePaths...)
	}
	methods := map[string][]string{"GET": {"GET"}, "POST": {"POST", "PUT"}, "PUT": {"PUT"}}
	spec.Methods = methods[m.pick("", "", "GET", "POST", "PUT")]
	return spec
}

// request makes a request with at most one value of each name.
func (m *choices) request() *Request {
	fields, query := map[string]string{}, url.Values{}
	for _, name := range someNames {
		fields[name] = m.pick(someUsers...)
		if value := m.pick(someUsers...); value != "" {
			query.Set(m.pick(name, strings.ToUpper(name)), value)
		}
	}
	path := url.URL{Path: m.pick(somePaths...)}
	target := path.EscapedPath() + "?" + query.Encode()
	return &Request{Method: m.pick("GET", "POST", "PUT"), Target: target, Values: func(name string) []string {
		if value := fields[strings.ToLower(name)]; value != "" {
			return []string{value}
		}
		return nil
	}}
}

// checkOrder requires that two matches are ordered or ambiguous if both take a request. It reports
// whether both take it and neither is more specific.
func checkOrder(t *testing.T, a, b *agentv1.Match, r *Request) bool {
	t.Helper()
	require.Equal(t, Compare(a, b), -Compare(b, a), "%v, %v", a, b)
	require.Equal(t, Ambiguous(a, b), Ambiguous(b, a), "%v, %v", a, b)
	x, err := Compile(a)
	if err != nil {
		return false
	}
	y, err := Compile(b)
	if err != nil || !x.Matches(r) || !y.Matches(r) {
		return false
	}
	require.True(t, Compare(a, b) != 0 || Ambiguous(a, b), "%v and %v take %s %s", a, b, r.Method, r.Target)
	return Compare(a, b) == 0
}

// FuzzAmbiguous checks that any two matches that take the same request are ordered or ambiguous.
func FuzzAmbiguous(f *testing.F) {
	f.Add([]byte{}, []byte{1}, []byte{1, 1})
	f.Fuzz(func(t *testing.T, one, other, sent []byte) {
		checkOrder(t, (*choices)(&one).match(), (*choices)(&other).match(), (*choices)(&sent).request())
	})
}

func TestMatchesOfOneRequestAreOrderedOrAmbiguous(t *testing.T) {
	random := rand.NewChaCha8([32]byte{})
	both := 0 // of equal rank
	for range 20_000 {
		one, sent := make(choices, 24), make(choices, 24)
		_, _ = random.Read(one)
		_, _ = random.Read(sent)
		other := slices.Clone(one)
		for range 2 {
			other[random.Uint64()%24] = byte(random.Uint64())
		}
		if checkOrder(t, one.match(), other.match(), sent.request()) {
			both++
		}
	}
	require.Greater(t, both, 100, "too few requests were taken by two matches of equal rank")
}
