// Package overrides parses the flags with which a user changes which networks and names lead to the
// cluster (--also-proxy, --map-subnet, --include-suffix ...). It is the one place that does: the
// command line parses them to reject a mistake before it starts a daemon, and the daemon parses
// what it receives. Start with Parse.
package overrides

import (
	"slices"

	"github.com/detour-dev/detour/pkg/client/routes"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// Overrides are parsed flags.
type Overrides struct {
	Routes routes.Overrides
	Names  dnsproxy.Rules
}

// Parse parses the flags. flags may be nil: then nothing is overridden. The error names the flag
// that is wrong.
func Parse(flags *daemonv1.NetworkOverrides) (o Overrides, err error) {
	if o.Routes, err = routes.Parse(flags.GetAlsoProxy(), flags.GetNeverProxy(), flags.GetMapSubnet()); err != nil {
		return Overrides{}, err
	}
	o.Names, err = dnsproxy.ParseRules(flags.GetIncludeSuffix(), flags.GetExcludeSuffix(), flags.GetMap())
	return o, err
}

// Mismatch lists the flags that a request sets and that differ from those of a session.
func Mismatch(request, session *daemonv1.NetworkOverrides) (flags []string) {
	for _, f := range []struct {
		name             string
		request, session []string
	}{
		{name: "--also-proxy", request: request.GetAlsoProxy(), session: session.GetAlsoProxy()},
		{name: "--never-proxy", request: request.GetNeverProxy(), session: session.GetNeverProxy()},
		{name: "--map-subnet", request: request.GetMapSubnet(), session: session.GetMapSubnet()},
		{name: "--include-suffix", request: request.GetIncludeSuffix(), session: session.GetIncludeSuffix()},
		{name: "--exclude-suffix", request: request.GetExcludeSuffix(), session: session.GetExcludeSuffix()},
		{name: "--map", request: request.GetMap(), session: session.GetMap()},
	} {
		if len(f.request) > 0 && !slices.Equal(f.request, f.session) {
			flags = append(flags, f.name)
		}
	}
	return flags
}
