package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/pflag"

	"github.com/detour-dev/detour/pkg/route"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// matchFlags are the conditions of a personal intercept.
type matchFlags struct {
	me               bool
	path, pathPrefix string
	headers, query   []string
	methods          []string
	flagChanged      func(flag string) bool
}

func (m *matchFlags) addFlags(f *pflag.FlagSet) {
	m.flagChanged = f.Changed
	f.BoolVar(&m.me, "me", false,
		"only my requests: those with the header "+route.UserHeader+": ME, or the baggage member "+route.Baggage+"=ME")
	f.StringArrayVar(&m.headers, "header", nil, "only requests with this header: NAME=VALUE, NAME~=REGEX or NAME "+
		"(repeatable)")
	f.StringArrayVar(&m.query, "query", nil, "only requests with this query parameter: NAME=VALUE, NAME~=REGEX or "+
		"NAME (repeatable)")
	f.StringSliceVar(&m.methods, "method", nil, "only requests with one of these methods: GET,POST (repeatable)")
	f.StringVar(&m.path, "path", "", "only requests for this path")
	f.StringVar(&m.pathPrefix, "path-prefix", "", "only requests for this path and the paths below it")
}

// parse returns the conditions, or nil if there are none.
func (m *matchFlags) parse() (*agentv1.Match, error) {
	if err := m.checkPaths(); err != nil {
		return nil, err
	}
	match := &agentv1.Match{Path: m.path, PathPrefix: m.pathPrefix}
	if m.me {
		match.User = userName()
	}
	for _, method := range m.methods {
		match.Methods = append(match.Methods, strings.ToUpper(strings.TrimSpace(method)))
	}
	for _, text := range m.headers {
		v, ok := parseValueMatch(text)
		if !ok || strings.ContainsAny(v.Name, " \t:") {
			return nil, fmt.Errorf("--header %q: write NAME=VALUE, NAME~=REGEX or NAME, as in --header x-dev=alice",
				text)
		}
		v.Value = strings.TrimSpace(v.Value) // as servers and HTTP/1 clients do
		match.Headers = append(match.Headers, v)
	}
	for _, text := range m.query {
		v, ok := parseValueMatch(text)
		if !ok {
			return nil, fmt.Errorf("--query %q: write NAME=VALUE, NAME~=REGEX or NAME, as in --query debug=1", text)
		}
		match.Query = append(match.Query, v)
	}
	if m.none() {
		return nil, nil //nolint:nilnil // no conditions are no error
	}
	if _, err := route.Compile(match); err != nil {
		return nil, err
	}
	return match, nil
}

// none reports whether no flag states a condition.
func (m *matchFlags) none() bool {
	return !m.me && m.path == "" && m.pathPrefix == "" && len(m.headers)+len(m.query)+len(m.methods) == 0
}

// checkPaths refuses flags that are set but empty, and paths that no request has.
func (m *matchFlags) checkPaths() error {
	// An unset variable of the shell must not turn a personal intercept into a global one.
	for _, f := range []struct {
		flag  string
		empty bool
	}{{"path", m.path == ""}, {"path-prefix", m.pathPrefix == ""}, {"method", len(m.methods) == 0}} {
		if f.empty && m.flagChanged(f.flag) {
			return fmt.Errorf("--%s is empty, so it states no condition: give it a value, or omit it", f.flag)
		}
	}
	if m.path != "" && m.pathPrefix != "" {
		return errors.New("--path and --path-prefix exclude each other: omit one of them")
	}
	for _, f := range []struct{ flag, path string }{{"path", m.path}, {"path-prefix", m.pathPrefix}} {
		if f.path != "" && f.path[0] != '/' {
			return fmt.Errorf("--%s %q does not begin with /: write for example --%s /%s", f.flag, f.path, f.flag,
				f.path)
		}
	}
	return nil
}

// parseValueMatch parses NAME=VALUE, NAME~=REGEX or NAME.
func parseValueMatch(text string) (_ *agentv1.ValueMatch, ok bool) {
	name, value, equals := strings.Cut(text, "=")
	kind := agentv1.MatchType_MATCH_TYPE_EXACT
	switch {
	case !equals:
		kind = agentv1.MatchType_MATCH_TYPE_PRESENT
	case strings.HasSuffix(name, "~"):
		name, kind = strings.TrimSuffix(name, "~"), agentv1.MatchType_MATCH_TYPE_REGEX
	}
	return &agentv1.ValueMatch{Name: name, Type: kind, Value: value}, strings.TrimSpace(name) != ""
}
