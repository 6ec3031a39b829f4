package route

import (
	"cmp"
	"slices"
	"strings"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// Compare orders matches on one port, most specific first, by the first of these that differs: an exact path before a prefix, a longer
// prefix before a shorter; more header conditions before fewer, and of as many, more exact ones; then the same for query parameters; a
// user before none; a list of methods before none. 0 says that neither is more specific.
func Compare(a, b *agentv1.Match) int {
	exact := func(all []*agentv1.ValueMatch) (n int) {
		for _, v := range all {
			if isExact(v) {
				n++
			}
		}
		return n
	}
	yes := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(yes(b.Path != ""), yes(a.Path != "")),
		cmp.Compare(len(b.PathPrefix), len(a.PathPrefix)),
		cmp.Compare(len(b.Headers), len(a.Headers)), cmp.Compare(exact(b.Headers), exact(a.Headers)),
		cmp.Compare(len(b.Query), len(a.Query)), cmp.Compare(exact(b.Query), exact(a.Query)),
		cmp.Compare(yes(b.User != ""), yes(a.User != "")),
		cmp.Compare(yes(len(b.Methods) > 0), yes(len(a.Methods) > 0)),
	)
}

// Ambiguous says whether a request could match both and neither is more specific. A match that is absent takes everything: two of those are
// ambiguous, and one comes after every other.
func Ambiguous(a, b *agentv1.Match) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return Compare(a, b) == 0 && !disjoint(a, b)
}

// disjoint says whether it is certain that no request matches both.
func disjoint(a, b *agentv1.Match) bool {
	switch {
	case a.User != "" && b.User != "" && a.User != b.User,
		a.Path != "" && b.Path != "" && a.Path != b.Path,
		a.PathPrefix != "" && b.PathPrefix != "" && !under(a.PathPrefix, b.PathPrefix) && !under(b.PathPrefix, a.PathPrefix),
		len(a.Methods) > 0 && len(b.Methods) > 0 && !slices.ContainsFunc(a.Methods, func(m string) bool { return slices.Contains(b.Methods, m) }):
		return true
	}
	return exclude(a.Headers, b.Headers, strings.EqualFold) || exclude(a.Query, b.Query, func(x, y string) bool { return x == y })
}

// exclude says whether two lists ask for different values of the same name. A request may carry a field twice; who marks requests for
// two people gets the first in order.
func exclude(a, b []*agentv1.ValueMatch, same func(string, string) bool) bool {
	for _, x := range a {
		for _, y := range b {
			if same(x.Name, y.Name) && isExact(x) && isExact(y) && x.Value != y.Value {
				return true
			}
		}
	}
	return false
}

// ConditionNames are the names of what a match looks at, without the values that it looks for in headers and queries.
func ConditionNames(m *agentv1.Match) []string {
	var all []string
	if m.GetUser() != "" {
		all = append(all, "header "+UserHeader+" or baggage")
	}
	for _, h := range m.GetHeaders() {
		all = append(all, "header "+h.Name)
	}
	for _, q := range m.GetQuery() {
		all = append(all, "query "+q.Name)
	}
	if m.GetPath() != "" || m.GetPathPrefix() != "" {
		all = append(all, "path")
	}
	if len(m.GetMethods()) > 0 {
		all = append(all, "method")
	}
	return all
}

// Describe says a match in the words of the command line.
func Describe(m *agentv1.Match) string {
	if m == nil {
		return "all requests"
	}
	var all []string
	if m.User != "" {
		all = append(all, "requests of "+m.User)
	}
	values := func(kind string, list []*agentv1.ValueMatch) {
		for _, v := range list {
			switch v.Type {
			case agentv1.MatchType_MATCH_TYPE_PRESENT:
				all = append(all, kind+" "+v.Name)
			case agentv1.MatchType_MATCH_TYPE_REGEX:
				all = append(all, kind+" "+v.Name+"~="+v.Value)
			default:
				all = append(all, kind+" "+v.Name+"="+v.Value)
			}
		}
	}
	values("header", m.Headers)
	values("query", m.Query)
	if m.Path != "" {
		all = append(all, "path "+m.Path)
	}
	if m.PathPrefix != "" {
		all = append(all, "paths under "+m.PathPrefix)
	}
	if len(m.Methods) > 0 {
		all = append(all, "method "+strings.Join(m.Methods, " or "))
	}
	return strings.Join(all, ", ")
}
