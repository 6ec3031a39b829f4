package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"
)

// connectOptions are the flags of `detour connect`.
type connectOptions struct {
	noArguments
	sessionOptions
	printFlags
}

func newConnectCommand(g *globalOptions) *cobra.Command {
	o := &connectOptions{sessionOptions: sessionOptions{globalOptions: g}, printFlags: printFlags{out: g.Out}}
	cmd := &cobra.Command{
		Use:   "connect",
		Short: "Connect this laptop to the cluster's network",
		Args:  cobra.NoArgs,
		Example: `  detour connect
  detour connect -n shop --context staging
  detour connect --also-proxy 10.20.0.0/16 --include-suffix corp.example.com
  detour connect --map-subnet auto`,
		RunE: runE(o),
	}
	o.printFlags.AddFlags(cmd.Flags())
	o.sessionOptions.addFlags(cmd.Flags())
	return cmd
}

// Validate implements commandOptions.
func (o *connectOptions) Validate() error {
	if err := o.printFlags.Validate(); err != nil {
		return err
	}
	return o.sessionOptions.validate()
}

// Run asks the daemon for a session with these options. The daemon refuses if it has another one.
func (o *connectOptions) Run(ctx context.Context) error {
	client, err := o.startDaemon(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	s, err := o.connect(ctx, client)
	if err != nil {
		return err
	}
	return o.Print(s, func(w io.Writer) { printStatus(w, s) })
}
