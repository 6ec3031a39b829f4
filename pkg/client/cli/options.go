package cli

import (
	"context"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"

	"github.com/detour-dev/detour/pkg/client/ipc"
)

// commandOptions are the flags and arguments of one command, and what the command does with them.
type commandOptions interface {
	// Complete takes the arguments. It asks neither the daemon nor the cluster.
	Complete(args []string) error
	// Validate refuses mistakes in flags and arguments. It asks neither the daemon nor the cluster.
	Validate() error
	// Run does what the command is for.
	Run(ctx context.Context) error
}

// runE completes, validates and runs o.
func runE(o commandOptions) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := o.Complete(args); err != nil {
			return err
		}
		if err := o.Validate(); err != nil {
			return err
		}
		return o.Run(cmd.Context())
	}
}

// globalOptions are what all commands share.
type globalOptions struct {
	genericiooptions.IOStreams
	// kubeconfig are kubectl's flags: --kubeconfig, --context, --namespace and so on.
	kubeconfig *genericclioptions.ConfigFlags
	// paths belong to the daemon that selectDaemon has chosen.
	paths ipc.Paths
}

// noArguments is the Complete of the commands without arguments.
type noArguments struct{}

func (noArguments) Complete([]string) error { return nil }
