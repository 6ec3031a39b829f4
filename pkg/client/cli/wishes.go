package cli

import (
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/client/routes"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// wishFlags are what a user may want otherwise than usual of networks and names.
func wishFlags(flags *pflag.FlagSet, w *daemonv1.NetworkOverrides) {
	for _, f := range []struct {
		name  string
		into  *[]string
		usage string
	}{
		{"also-proxy", &w.AlsoProxy, "CIDR that leads to the cluster too, even if the laptop uses it (repeatable)"},
		{"never-proxy", &w.NeverProxy, "CIDR that does not lead to the cluster (repeatable)"},
		{"map-subnet", &w.MapSubnet, "CIDR=CIDR or CIDR=auto: a network of the cluster that this laptop sees at other addresses; auto: all that the laptop uses itself (repeatable)"},
		{"include-suffix", &w.IncludeSuffix, "the cluster's DNS is asked for names that end so (repeatable)"},
		{"exclude-suffix", &w.ExcludeSuffix, "the cluster's DNS is never asked for names that end so (repeatable)"},
		{"map", &w.Map, "NAME=TARGET: a name that is an IP address or another name (repeatable)"},
	} {
		flags.StringArrayVar(f.into, f.name, nil, f.usage)
	}
}

// wished says whether any of the flags was given.
func (a *app) wished() bool { return !proto.Equal(&a.overrides, &daemonv1.NetworkOverrides{}) }

// checkWishes complains of a flag before anything is started.
func (a *app) checkWishes() error {
	if _, err := routes.Parse(a.overrides.AlsoProxy, a.overrides.NeverProxy, a.overrides.MapSubnet); err != nil {
		return err
	}
	_, err := dnsproxy.ParseRules(a.overrides.IncludeSuffix, a.overrides.ExcludeSuffix, a.overrides.Map)
	return err
}
