package cli

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/spf13/pflag"

	"github.com/detour-dev/detour/pkg/route"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// matchFlags are the conditions of a personal intercept.
type matchFlags struct {
	me               bool
	path, pathPrefix string
	headers, query   []string
	methods          []string
	given            func(flag string) bool
}

func (m *matchFlags) add(f *pflag.FlagSet) {
	m.given = f.Changed
	f.BoolVar(&m.me, "me", false, "only my requests: with the header "+route.UserHeader+": ME, or the baggage member "+route.Baggage+"=ME")
	f.StringArrayVar(&m.headers, "header", nil, "only requests with a header: NAME=VALUE, NAME~=REGEX or NAME (repeatable)")
	f.StringArrayVar(&m.query, "query", nil, "only requests with a query parameter: NAME=VALUE, NAME~=REGEX or NAME (repeatable)")
	f.StringSliceVar(&m.methods, "method", nil, "only requests with one of these methods: GET,POST (repeatable)")
	f.StringVar(&m.path, "path", "", "only requests for this path")
	f.StringVar(&m.pathPrefix, "path-prefix", "", "only requests for this path and what is below it")
}

// match is nil when no flag was given.
func (m *matchFlags) match() (*agentv1.Match, error) {
	// A variable of the shell that is not set must not turn a personal intercept into one that takes everybody's traffic.
	for flag, empty := range map[string]bool{"path": m.path == "", "path-prefix": m.pathPrefix == "", "method": len(m.methods) == 0} {
		if empty && m.given(flag) {
			return nil, fmt.Errorf("--%s is empty, so it is no condition: give it a value, or leave it out", flag)
		}
	}
	if m.path != "" && m.pathPrefix != "" {
		return nil, errors.New("--path and --path-prefix exclude each other: leave one of them out")
	}
	for flag, path := range map[string]string{"path": m.path, "path-prefix": m.pathPrefix} {
		if path != "" && path[0] != '/' {
			return nil, fmt.Errorf("--%s %q does not begin with /: write for example --%s /%s", flag, path, flag, path)
		}
	}
	spec := &agentv1.Match{Path: m.path, PathPrefix: m.pathPrefix}
	if m.me {
		spec.User = userName()
	}
	for _, method := range m.methods {
		spec.Methods = append(spec.Methods, strings.ToUpper(strings.TrimSpace(method)))
	}
	for _, text := range m.headers {
		v, ok := parseValue(text)
		if !ok || strings.ContainsAny(v.Name, " \t:") {
			return nil, fmt.Errorf("--header %q: write NAME=VALUE, NAME~=REGEX or NAME, as in --header x-dev=alice", text)
		}
		v.Value = strings.TrimSpace(v.Value) // as servers and HTTP/1 clients do
		spec.Headers = append(spec.Headers, v)
	}
	for _, text := range m.query {
		v, ok := parseValue(text)
		if !ok {
			return nil, fmt.Errorf("--query %q: write NAME=VALUE, NAME~=REGEX or NAME, as in --query debug=1", text)
		}
		spec.Query = append(spec.Query, v)
	}
	if !m.me && m.path == "" && m.pathPrefix == "" && len(m.headers)+len(m.query)+len(m.methods) == 0 {
		return nil, nil //nolint:nilnil // no match is everything
	}
	if _, err := route.Compile(spec); err != nil {
		return nil, err
	}
	return spec, nil
}

func parseValue(text string) (_ *agentv1.ValueMatch, ok bool) {
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

// curl is a command line whose request meets the conditions, where they say one; empty where they do not.
func curl(m *agentv1.Match, i *daemonv1.Intercept) string {
	words := []string{"curl"}
	// -X HEAD would wait for a body, and GET is curl's own.
	body := slices.IndexFunc(m.Methods, func(method string) bool { return method != http.MethodHead })
	switch {
	case len(m.Methods) == 0 || slices.Contains(m.Methods, http.MethodGet):
	case body < 0:
		words = append(words, "-I")
	default:
		words = append(words, "-X", m.Methods[body])
	}
	if m.User != "" {
		words = append(words, "-H", quote(route.UserHeader+": "+m.User))
	}
	for _, h := range m.Headers {
		switch h.Type {
		case agentv1.MatchType_MATCH_TYPE_REGEX:
			return ""
		case agentv1.MatchType_MATCH_TYPE_PRESENT:
			words = append(words, "-H", quote(h.Name+": 1"))
		default:
			field := h.Name + ": " + h.Value
			if h.Value == "" {
				field = h.Name + ";" // a colon with nothing after it takes the field away
			}
			words = append(words, "-H", quote(field))
		}
	}
	var query []string
	for _, q := range m.Query {
		if q.Type == agentv1.MatchType_MATCH_TYPE_REGEX {
			return ""
		}
		query = append(query, url.QueryEscape(q.Name)+"="+url.QueryEscape(q.Value))
	}
	scheme, usual := "http", uint32(80)
	if i.TlsSecret != "" {
		scheme, usual = "https", 443
		words = slices.Insert(words, 1, "-k")
	}
	target := i.Service + "." + i.Namespace
	if i.ServicePort != usual {
		target += fmt.Sprintf(":%d", i.ServicePort)
	}
	path := url.URL{Path: cmp.Or(m.Path, m.PathPrefix, "/")}
	target += path.EscapedPath()
	if len(query) > 0 {
		target += "?" + strings.Join(query, "&")
	}
	return strings.Join(append(words, quote(scheme+"://"+target)), " ")
}

// quote makes one word of a shell.
func quote(s string) string {
	if strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=@%+,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
