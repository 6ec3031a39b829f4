package cli

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/rootless"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// runOptions are the flags and arguments of `detour run` and `detour shell`.
type runOptions struct {
	sessionOptions
	command []string
}

func newRunCommand(g *globalOptions) *cobra.Command {
	o := &runOptions{sessionOptions: sessionOptions{globalOptions: g}}
	cmd := &cobra.Command{
		Use:   "run [flags] -- COMMAND [ARGS...]",
		Short: "Run a command on the cluster's network",
		Args:  cobra.MinimumNArgs(1),
		Long: `Runs a command on the cluster's network. It connects first if detour is not connected. In the rootless
mode this is how a process gets onto that network: the laptop itself stays as it is. detour ends with
the exit code of the command.`,
		Example: "  detour run -- curl http://catalog.shop\n  detour run -n shop -- ./server --port 8080",
		RunE:    runE(o),
	}
	cmd.Flags().SetInterspersed(false)
	o.sessionOptions.addFlags(cmd.Flags())
	return cmd
}

func newShellCommand(g *globalOptions) *cobra.Command {
	o := &runOptions{sessionOptions: sessionOptions{globalOptions: g}}
	cmd := &cobra.Command{
		Use:     "shell",
		Short:   "Run $SHELL on the cluster's network",
		Args:    cobra.NoArgs,
		Example: "  detour shell",
		RunE:    runE(o),
	}
	o.sessionOptions.addFlags(cmd.Flags())
	return cmd
}

// Complete implements commandOptions. Without a command it takes the user's shell.
func (o *runOptions) Complete(args []string) error {
	o.command = args
	if len(args) == 0 {
		shell := os.Getenv("SHELL")
		if shell == "" {
			shell = "/bin/sh"
		}
		o.command = []string{shell}
	}
	return nil
}

// Validate implements commandOptions.
func (o *runOptions) Validate() error { return o.sessionOptions.validate() }

// Run runs the command until it ends.
func (o *runOptions) Run(ctx context.Context) error {
	s, err := ensureSession(ctx, &o.sessionOptions)
	if err != nil {
		return err
	}
	defer s.Close()
	p, err := rootless.Exec(namespacePID(s.status), o.command, os.Environ())
	if err != nil {
		return startFailure(err)
	}
	return waitForCommand(p)
}

// namespacePID returns the process whose namespaces a command has to enter. It is 0 if there are
// none, or if this process is in them already.
func namespacePID(s *daemonv1.StatusResponse) int {
	if id, err := os.Readlink("/proc/self/ns/net"); err == nil && id == s.NamespaceId {
		return 0
	}
	return int(s.NamespacePid)
}
