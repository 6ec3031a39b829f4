package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/version"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// statusOptions are the flags of `detour status`.
type statusOptions struct {
	*globalOptions
	noArguments
	printFlags
}

func newStatusCommand(g *globalOptions) *cobra.Command {
	o := &statusOptions{globalOptions: g, printFlags: printFlags{out: g.Out}}
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the connection and the intercepts of this laptop",
		Args:    cobra.NoArgs,
		Example: "  detour status\n  detour status -o json",
		RunE:    runE(o),
	}
	o.printFlags.AddFlags(cmd.Flags())
	return cmd
}

// Run prints the daemon's status. Without a daemon, the laptop is not connected.
func (o *statusOptions) Run(ctx context.Context) error {
	s := &daemonv1.StatusResponse{ClientVersion: version.Version}
	client, err := dialDaemon(ctx, o.paths)
	switch {
	case errors.Is(err, ipc.ErrNoDaemon):
	case err != nil:
		return err
	default:
		defer client.Close()
		if s, err = client.Status(ctx, &daemonv1.StatusRequest{}); err != nil {
			return err
		}
	}
	return o.Print(s, func(w io.Writer) { printStatus(w, s) })
}
