package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/version"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// versionOptions are the flags of `detour version`.
type versionOptions struct {
	*globalOptions
	noArguments
	printFlags
}

func newVersionCommand(g *globalOptions) *cobra.Command {
	o := &versionOptions{globalOptions: g, printFlags: printFlags{out: g.Out}}
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print the versions of the client, the daemon and the traffic-manager",
		Args:    cobra.NoArgs,
		Example: "  detour version",
		RunE:    runE(o),
	}
	o.printFlags.AddFlags(cmd.Flags())
	return cmd
}

// Run prints the version of each component that can be asked for it.
func (o *versionOptions) Run(ctx context.Context) error {
	versions := map[string]string{"client": version.Version}
	if client, err := dialDaemon(ctx, o.paths); err == nil {
		defer client.Close()
		if s, err := client.Status(ctx, &daemonv1.StatusRequest{}); err == nil {
			versions["daemon"] = s.ClientVersion
			if s.ManagerVersion != "" {
				versions["traffic-manager"] = s.ManagerVersion
			}
		}
	}
	return o.Print(versions, func(w io.Writer) {
		for _, component := range []string{"client", "daemon", "traffic-manager"} {
			if v := versions[component]; v != "" {
				fmt.Fprintf(w, "%-16s %s\n", component, v)
			}
		}
	})
}
