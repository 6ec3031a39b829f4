// Package route decides which requests belong to which intercept: the match language, and the order of matches on one port.
package route

import (
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	"golang.org/x/net/http/httpguts"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// UserHeader marks the requests of a person, and so does the member Baggage of the W3C header "baggage", which OpenTelemetry passes on
// from service to service (https://www.w3.org/TR/baggage/).
const (
	UserHeader = "x-detour-for"
	Baggage    = "detour"
)

// Request is what a match looks at.
type Request struct {
	Method string
	Target string // as in the request line: path and query, or a whole URL
	// Values are the values of a header field, whatever the name's case.
	Values func(name string) []string
}

// Match is a compiled match.
type Match struct {
	spec             *agentv1.Match
	headers, queries []condition
}

type condition struct {
	*agentv1.ValueMatch
	pattern *regexp.Regexp
}

// Compile checks a match and makes it ready.
func Compile(spec *agentv1.Match) (*Match, error) {
	m := &Match{spec: spec}
	if spec.User == "" && len(spec.Headers) == 0 && len(spec.Query) == 0 && len(spec.Methods) == 0 && spec.Path == "" && spec.PathPrefix == "" {
		return nil, errors.New("a match without conditions: leave it out to take everything")
	}
	if spec.Path != "" && spec.PathPrefix != "" {
		return nil, errors.New("a match has a path or a path prefix, not both")
	}
	for _, p := range []string{spec.Path, spec.PathPrefix} {
		if p != "" && p[0] != '/' {
			return nil, fmt.Errorf("the path %q does not begin with /", p)
		}
	}
	// What no request can have would be a condition that never holds.
	for _, method := range spec.Methods {
		if !isToken(method) {
			return nil, fmt.Errorf("the method %q is none: it is one word, such as POST", method)
		}
	}
	for _, h := range spec.Headers {
		switch {
		case h.Name != "" && !isToken(h.Name):
			return nil, fmt.Errorf("%q is no name of a header", h.Name)
		case isExact(h) && (strings.TrimSpace(h.Value) != h.Value || !httpguts.ValidHeaderFieldValue(h.Value)):
			return nil, fmt.Errorf("the header %s cannot have the value %q: there are no blanks around it, nor control characters in it", h.Name, h.Value)
		}
	}
	var err error
	if m.headers, err = conditions("header", spec.Headers); err != nil {
		return nil, err
	}
	m.queries, err = conditions("query parameter", spec.Query)
	return m, err
}

// isToken says whether s is what HTTP calls a token, as names and methods are.
func isToken(s string) bool { return httpguts.ValidHeaderFieldName(s) }

func isExact(v *agentv1.ValueMatch) bool { return v.Type <= agentv1.MatchType_MATCH_TYPE_EXACT }

func conditions(kind string, all []*agentv1.ValueMatch) ([]condition, error) {
	var compiled []condition
	for _, v := range all {
		c := condition{ValueMatch: v}
		if v.Name == "" {
			return nil, fmt.Errorf("a %s without a name", kind)
		}
		if v.Type == agentv1.MatchType_MATCH_TYPE_REGEX {
			// By itself first: a parenthesis of its own must not end the one that holds it.
			if _, err := regexp.Compile(v.Value); err != nil {
				why := err.Error()
				var broken *syntax.Error
				if errors.As(err, &broken) {
					why = broken.Code.String()
				}
				return nil, fmt.Errorf("the %s %s has %q, which is no regular expression: %s", kind, v.Name, v.Value, why)
			}
			var err error
			// The whole value, as in the Gateway API; linear in time (RE2).
			if c.pattern, err = regexp.Compile(`\A(?:` + v.Value + `)\z`); err != nil {
				return nil, fmt.Errorf("the regular expression of %s %s: %w", kind, v.Name, err)
			}
		}
		compiled = append(compiled, c)
	}
	return compiled, nil
}

func (c *condition) holds(values []string) bool {
	switch c.Type {
	case agentv1.MatchType_MATCH_TYPE_PRESENT:
		return len(values) > 0
	case agentv1.MatchType_MATCH_TYPE_REGEX:
		return slices.ContainsFunc(values, c.pattern.MatchString)
	default:
		return slices.Contains(values, c.Value)
	}
}

// Matches says whether all conditions hold.
func (m *Match) Matches(r *Request) bool {
	if len(m.spec.Methods) > 0 && !slices.Contains(m.spec.Methods, r.Method) {
		return false
	}
	if m.spec.User != "" && !ofUser(r, m.spec.User) {
		return false
	}
	for i := range m.headers {
		if !m.headers[i].holds(r.Values(m.headers[i].Name)) {
			return false
		}
	}
	if m.spec.Path == "" && m.spec.PathPrefix == "" && len(m.queries) == 0 {
		return true
	}
	target, err := url.ParseRequestURI(r.Target)
	if err != nil {
		return false
	}
	if (m.spec.Path != "" && target.Path != m.spec.Path) || !under(target.Path, m.spec.PathPrefix) {
		return false
	}
	if len(m.queries) == 0 {
		return true
	}
	query := target.Query()
	for i := range m.queries {
		if !m.queries[i].holds(query[m.queries[i].Name]) {
			return false
		}
	}
	return true
}

// under says whether a path is prefix or below it, in whole segments: /api is above /api/x and not above /apix.
func under(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(prefix, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

func ofUser(r *Request, user string) bool {
	if slices.Contains(r.Values(UserHeader), user) {
		return true
	}
	for _, v := range r.Values("baggage") {
		for member := range strings.SplitSeq(v, ",") {
			member, _, _ = strings.Cut(member, ";") // properties
			key, value, ok := strings.Cut(member, "=")
			if !ok || strings.TrimSpace(key) != Baggage {
				continue
			}
			if plain, err := url.PathUnescape(strings.TrimSpace(value)); err == nil && plain == user {
				return true
			}
		}
	}
	return false
}
