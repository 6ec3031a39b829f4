package route

import (
	"cmp"
	"slices"
	"strings"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// Compare orders the matches of one port, the most specific first. The first of these that differs
// decides:
//
//   - an exact path comes before a prefix, and a longer prefix before a shorter one;
//   - more header conditions come before fewer, and if there are as many, more exact ones first;
//   - the same for query parameters;
//   - a user comes before none, and a list of methods before none.
//
// The result is 0 if neither match is more specific.
func Compare(a, b *agentv1.Match) int {
	exact := func(all []*agentv1.ValueMatch) (n int) {
		for _, v := range all {
			if isExact(v) {
				n++
			}
		}
		return n
	}
	rank := func(b bool) int {
		if b {
			return 1
		}
		return 0
	}
	return cmp.Or(
		cmp.Compare(rank(b.Path != ""), rank(a.Path != "")),
		cmp.Compare(len(b.PathPrefix), len(a.PathPrefix)),
		cmp.Compare(len(b.Headers), len(a.Headers)), cmp.Compare(exact(b.Headers), exact(a.Headers)),
		cmp.Compare(len(b.Query), len(a.Query)), cmp.Compare(exact(b.Query), exact(a.Query)),
		cmp.Compare(rank(b.User != ""), rank(a.User != "")),
		cmp.Compare(rank(len(b.Methods) > 0), rank(len(a.Methods) > 0)),
	)
}

// Ambiguous reports whether a request could meet both matches while neither is more specific. A nil
// match takes every request: two of them are ambiguous, and a single one comes after all other
// matches.
func Ambiguous(a, b *agentv1.Match) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return Compare(a, b) == 0 && !disjoint(a, b)
}

// disjoint reports whether it is certain that no request meets both matches.
func disjoint(a, b *agentv1.Match) bool {
	switch {
	case a.User != "" && b.User != "" && a.User != b.User,
		a.Path != "" && b.Path != "" && a.Path != b.Path,
		a.PathPrefix != "" && b.PathPrefix != "" &&
			!under(a.PathPrefix, b.PathPrefix) && !under(b.PathPrefix, a.PathPrefix),
		len(a.Methods) > 0 && len(b.Methods) > 0 && !overlap(a.Methods, b.Methods):
		return true
	}
	equal := func(x, y string) bool { return x == y }
	return exclude(a.Headers, b.Headers, strings.EqualFold) || exclude(a.Query, b.Query, equal)
}

func overlap(a, b []string) bool {
	return slices.ContainsFunc(a, func(s string) bool { return slices.Contains(b, s) })
}

// exclude reports whether two lists require different values of the same name. A request that
// carries a field twice may meet both all the same: then the first match in order takes it.
func exclude(a, b []*agentv1.ValueMatch, sameName func(string, string) bool) bool {
	for _, x := range a {
		for _, y := range b {
			if sameName(x.Name, y.Name) && isExact(x) && isExact(y) && x.Value != y.Value {
				return true
			}
		}
	}
	return false
}

// ConditionNames returns what a match looks at, without the values: "header x-dev", "path".
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

// Describe returns a match in words close to the flags of `detour intercept`.
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
