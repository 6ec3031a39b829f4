// Package route decides which requests belong to which intercept: the match language, and the order
// of the matches on one port. Start from [Compile] and [Compare].
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

// UserHeader marks the requests of a person. So does the member Baggage of the W3C header
// "baggage", which OpenTelemetry passes on from service to service
// (https://www.w3.org/TR/baggage/).
const (
	UserHeader = "x-detour-for"
	Baggage    = "detour"
)

// Request is the part of a request that a match looks at.
type Request struct {
	Method string
	Target string // as in the request line: path and query, or a whole URL
	// Values returns the values of a header field. The name may be in any case.
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

// Compile checks a match, and returns it in the form that Matches needs. It keeps spec, which must
// not change.
func Compile(spec *agentv1.Match) (*Match, error) {
	if err := check(spec); err != nil {
		return nil, err
	}
	m := &Match{spec: spec}
	var err error
	if m.headers, err = conditions("header", spec.Headers); err != nil {
		return nil, err
	}
	m.queries, err = conditions("query parameter", spec.Query)
	return m, err
}

// check refuses a match without conditions, and one with a condition that no request can meet.
func check(spec *agentv1.Match) error {
	if spec.User == "" && len(spec.Headers) == 0 && len(spec.Query) == 0 && len(spec.Methods) == 0 && !hasPath(spec) {
		return errors.New("the match has no conditions: leave it out to take all requests")
	}
	if err := checkPath(spec); err != nil {
		return err
	}
	for _, method := range spec.Methods {
		if !isToken(method) {
			return fmt.Errorf("%q is not a valid method: use one word, for example POST", method)
		}
	}
	for _, h := range spec.Headers {
		if err := checkHeader(h); err != nil {
			return err
		}
	}
	return nil
}

// hasPath reports whether a match has a condition on the path.
func hasPath(spec *agentv1.Match) bool { return spec.Path != "" || spec.PathPrefix != "" }

func checkPath(spec *agentv1.Match) error {
	if spec.Path != "" && spec.PathPrefix != "" {
		return errors.New("the match has a path and a path prefix: use only one of them")
	}
	for _, p := range []string{spec.Path, spec.PathPrefix} {
		if p != "" && p[0] != '/' {
			return fmt.Errorf("the path %q does not begin with /", p)
		}
	}
	return nil
}

func checkHeader(h *agentv1.ValueMatch) error {
	switch {
	case h.Name != "" && !isToken(h.Name):
		return fmt.Errorf("%q is not a valid header name", h.Name)
	case isExact(h) && (strings.TrimSpace(h.Value) != h.Value || !httpguts.ValidHeaderFieldValue(h.Value)):
		return fmt.Errorf(
			"%q is not a valid value of the header %s: remove blanks around it and control characters in it",
			h.Value, h.Name)
	}
	return nil
}

// isToken reports whether s is a token of HTTP, as names and methods are.
func isToken(s string) bool { return httpguts.ValidHeaderFieldName(s) }

func isExact(v *agentv1.ValueMatch) bool { return v.Type <= agentv1.MatchType_MATCH_TYPE_EXACT }

func conditions(kind string, all []*agentv1.ValueMatch) ([]condition, error) {
	var compiled []condition
	for _, v := range all {
		c := condition{ValueMatch: v}
		if v.Name == "" {
			return nil, fmt.Errorf("a %s has no name", kind)
		}
		if v.Type == agentv1.MatchType_MATCH_TYPE_REGEX {
			// The expression is compiled alone first, so that a parenthesis in it cannot close the
			// group around it below.
			if _, err := regexp.Compile(v.Value); err != nil {
				reason := err.Error()
				var invalid *syntax.Error
				if errors.As(err, &invalid) {
					reason = invalid.Code.String()
				}
				return nil, fmt.Errorf(
					"the %s %s has %q, which is not a valid regular expression: %s", kind, v.Name, v.Value, reason)
			}
			var err error
			// It has to match the whole value, as in the Gateway API. RE2 needs linear time.
			if c.pattern, err = regexp.Compile(`\A(?:` + v.Value + `)\z`); err != nil {
				return nil, fmt.Errorf("compile the regular expression of the %s %s: %w", kind, v.Name, err)
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

// Matches reports whether a request meets all conditions.
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
	return m.matchesTarget(r.Target)
}

// matchesTarget reports whether a request's target meets the conditions on the path and the query.
// It parses the target only if there are any.
func (m *Match) matchesTarget(raw string) bool {
	if !hasPath(m.spec) && len(m.queries) == 0 {
		return true
	}
	target, err := url.ParseRequestURI(raw)
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

// under reports whether a path is prefix or below it, in whole segments: /api/x is below /api, and
// /apix is not.
func under(path, prefix string) bool {
	rest, ok := strings.CutPrefix(path, strings.TrimSuffix(prefix, "/"))
	return ok && (rest == "" || rest[0] == '/')
}

// ofUser reports whether a request is marked as a person's.
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
