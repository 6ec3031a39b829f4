// Package spec converts the match of an Intercept object to the message that agents get, and back.
// It is apart from package route so that the agent does not link the Kubernetes types.
package spec

import (
	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

var types = map[detour.MatchType]agentv1.MatchType{
	detour.MatchExact:   agentv1.MatchType_MATCH_TYPE_EXACT,
	detour.MatchRegex:   agentv1.MatchType_MATCH_TYPE_REGEX,
	detour.MatchPresent: agentv1.MatchType_MATCH_TYPE_PRESENT,
}

// FromAPI converts the match of an Intercept to the message that agents get. nil stays nil.
func FromAPI(m *detour.Match) *agentv1.Match {
	if m == nil {
		return nil
	}
	values := func(all []detour.ValueMatch) (out []*agentv1.ValueMatch) {
		for _, v := range all {
			out = append(out, &agentv1.ValueMatch{Name: v.Name, Type: types[v.Type], Value: v.Value})
		}
		return out
	}
	return &agentv1.Match{
		User: m.User, Headers: values(m.Headers), Query: values(m.Query),
		Methods: m.Methods, Path: m.Path, PathPrefix: m.PathPrefix,
	}
}

// ToAPI converts a match of an agent to that of an Intercept. nil stays nil.
func ToAPI(m *agentv1.Match) *detour.Match {
	if m == nil {
		return nil
	}
	values := func(all []*agentv1.ValueMatch) (out []detour.ValueMatch) {
		for _, v := range all {
			kind := detour.MatchExact
			for name, number := range types {
				if number == v.Type {
					kind = name
				}
			}
			out = append(out, detour.ValueMatch{Name: v.Name, Type: kind, Value: v.Value})
		}
		return out
	}
	return &detour.Match{
		User: m.User, Headers: values(m.Headers), Query: values(m.Query),
		Methods: m.Methods, Path: m.Path, PathPrefix: m.PathPrefix,
	}
}
