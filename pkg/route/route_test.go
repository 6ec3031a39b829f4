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

// made makes a match, or what is asked, of bytes: of so few names and values that many have something in common.
type made []byte

func (m *made) of(choices ...string) string {
	if len(*m) == 0 {
		return choices[0]
	}
	i := int((*m)[0]) % len(choices)
	*m = (*m)[1:]
	return choices[i]
}

var (
	someNames = []string{"x", "y", UserHeader}
	somePaths = []string{"/", "/a", "/a/", "/a/b", "/ab", "/a//", "//", "/a b"}
	somebody  = []string{"", "alice", "bob", "alice", "bob"}
)

func (m *made) values() (all []*agentv1.ValueMatch) {
	for range 2 {
		if name := m.of(append(someNames, "", "", "", "", "")...); name != "" {
			all = append(all, map[string]*agentv1.ValueMatch{
				"exact": {Name: name, Value: "alice"}, "other": {Name: strings.ToUpper(name), Value: "bob"}, "present": {Name: name, Type: agentv1.MatchType_MATCH_TYPE_PRESENT},
				"regex": pattern(name, "alice|bob"), "any": pattern(name, ".*"),
			}[m.of("exact", "other", "present", "regex", "any")])
		}
	}
	return all
}

func (m *made) match() *agentv1.Match {
	spec := &agentv1.Match{User: m.of("", "", "", "alice", "bob"), Headers: m.values(), Query: m.values()}
	switch m.of("", "path", "prefix") {
	case "path":
		spec.Path = m.of(somePaths...)
	case "prefix":
		spec.PathPrefix = m.of(somePaths...)
	}
	spec.Methods = map[string][]string{"GET": {"GET"}, "POST": {"POST", "PUT"}, "PUT": {"PUT"}}[m.of("", "", "GET", "POST", "PUT")]
	return spec
}

// request has at most one value of each name.
func (m *made) request() *Request {
	fields, query := map[string]string{}, url.Values{}
	for _, name := range someNames {
		fields[name] = m.of(somebody...)
		if value := m.of(somebody...); value != "" {
			query.Set(m.of(name, strings.ToUpper(name)), value)
		}
	}
	path := url.URL{Path: m.of(somePaths...)}
	target := path.EscapedPath() + "?" + query.Encode()
	return &Request{Method: m.of("GET", "POST", "PUT"), Target: target, Values: func(name string) []string {
		if value := fields[strings.ToLower(name)]; value != "" {
			return []string{value}
		}
		return nil
	}}
}

// orderedOrAmbiguous checks two matches and a request, and says whether both take it and neither is more specific.
func orderedOrAmbiguous(t *testing.T, a, b *agentv1.Match, r *Request) bool {
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

// Two matches that both take a request are ordered or ambiguous, whatever they are.
func FuzzAmbiguous(f *testing.F) {
	f.Add([]byte{}, []byte{1}, []byte{1, 1})
	f.Fuzz(func(t *testing.T, one, other, asked []byte) {
		orderedOrAmbiguous(t, (*made)(&one).match(), (*made)(&other).match(), (*made)(&asked).request())
	})
}

func TestOrderedOrAmbiguous(t *testing.T) {
	random := rand.NewChaCha8([32]byte{})
	both := 0 // of equal rank
	for range 20_000 {
		one, asked := make(made, 24), make(made, 24)
		_, _ = random.Read(one)
		_, _ = random.Read(asked)
		other := slices.Clone(one)
		for range 2 {
			other[random.Uint64()%24] = byte(random.Uint64())
		}
		if orderedOrAmbiguous(t, one.match(), other.match(), asked.request()) {
			both++
		}
	}
	require.Greater(t, both, 100, "requests that two matches take")
}
