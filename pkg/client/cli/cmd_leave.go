package cli

import (
	"context"
	"errors"
	"io"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// leaveOptions are the flags and arguments of `detour leave`.
type leaveOptions struct {
	*globalOptions
	printFlags
	target  string // name of a service, workload or intercept
	port    string
	changed func(flag string) bool
}

func newLeaveCommand(g *globalOptions) *cobra.Command {
	o := &leaveOptions{globalOptions: g, printFlags: printFlags{out: g.Out}}
	cmd := &cobra.Command{
		Use:     "leave SERVICE|WORKLOAD",
		Short:   "End an intercept: the cluster's pods get the traffic or the work back",
		Args:    cobra.ExactArgs(1),
		Example: "  detour leave catalog\n  detour leave deployment/worker",
		RunE:    runE(o),
	}
	o.changed = cmd.Flags().Changed
	cmd.Flags().StringVar(&o.port, "port", "", "leave only the intercept of this service port, by name or number")
	o.printFlags.AddFlags(cmd.Flags())
	return cmd
}

// Complete implements commandOptions.
func (o *leaveOptions) Complete(args []string) error {
	o.target = args[0]
	return nil
}

// Validate implements commandOptions.
func (o *leaveOptions) Validate() error {
	if err := o.printFlags.Validate(); err != nil {
		return err
	}
	if o.target == "" {
		return errors.New("the name is empty: name the service or workload to leave; `detour status` lists them")
	}
	if o.port == "" && o.changed("port") {
		// An unset variable of the shell must not end all intercepts of the service.
		return errors.New("--port is empty: name one of the service's ports, or omit --port to leave all of them")
	}
	return nil
}

// Run ends the intercepts.
func (o *leaveOptions) Run(ctx context.Context) error {
	client, err := dialDaemon(ctx, o.paths)
	if errors.Is(err, ipc.ErrNoDaemon) {
		return errors.New("not connected: there is no intercept to leave")
	} else if err != nil {
		return err
	}
	defer client.Close()
	r, err := client.Leave(ctx, &daemonv1.LeaveRequest{Service: o.target, Port: o.port})
	if err != nil {
		return err
	}
	return o.Print(r, func(w io.Writer) {
		for _, i := range r.Intercepts {
			printEnded(w, i)
		}
	})
}
