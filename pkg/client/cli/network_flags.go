package cli

import (
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/client/overrides"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// networkFlags change which networks and names lead to the cluster.
type networkFlags struct {
	overrides daemonv1.NetworkOverrides
}

func (n *networkFlags) addFlags(flags *pflag.FlagSet) {
	o := &n.overrides
	for _, f := range []struct {
		name  string
		value *[]string
		usage string
	}{
		{"also-proxy", &o.AlsoProxy, "CIDR that leads to the cluster too, even if the laptop uses it (repeatable)"},
		{"never-proxy", &o.NeverProxy, "CIDR that does not lead to the cluster (repeatable)"},
		{"map-subnet", &o.MapSubnet, "CIDR=CIDR or CIDR=auto: show a network of the cluster at other addresses on " +
			"this laptop; auto: all networks that the laptop uses itself (repeatable)"},
		{"include-suffix", &o.IncludeSuffix, "resolve names with this suffix with the cluster's DNS (repeatable)"},
		{"exclude-suffix", &o.ExcludeSuffix, "never resolve names with this suffix with the cluster's DNS " +
			"(repeatable)"},
		{"map", &o.Map, "NAME=TARGET: resolve NAME to an IP address or to another name (repeatable)"},
	} {
		flags.StringArrayVar(f.value, f.name, nil, f.usage)
	}
}

// changed reports whether any of the flags is set.
func (n *networkFlags) changed() bool {
	return !proto.Equal(&n.overrides, &daemonv1.NetworkOverrides{})
}

// validate refuses wrong values before a daemon is started for them.
func (n *networkFlags) validate() error {
	_, err := overrides.Parse(&n.overrides)
	return err
}
