package cli

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"k8s.io/klog/v2"

	"github.com/detour-dev/detour/pkg/client/credential"
	"github.com/detour-dev/detour/pkg/client/install"
	"github.com/detour-dev/detour/pkg/rootless"
)

// Command returns the root command with all commands below it. They read and write streams only,
// but for the programs that they start.
func Command(streams genericiooptions.IOStreams) *cobra.Command {
	g := &globalOptions{IOStreams: streams, kubeconfig: genericclioptions.NewConfigFlags(true)}
	root := &cobra.Command{
		Use:   "detour",
		Short: "Run one service of a Kubernetes application on your laptop",
		Long: `detour sends the traffic of one service in the cluster to a process on your laptop, and connects the
laptop to the cluster's network.`,
		SilenceUsage:      true,
		SilenceErrors:     true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return g.prepare(cmd) },
	}
	g.kubeconfig.AddFlags(root.PersistentFlags())
	root.AddCommand(
		newConnectCommand(g), newQuitCommand(g), newStatusCommand(g), newListCommand(g),
		newInterceptCommand(g), newLeaveCommand(g), newTailCommand(g), newRunCommand(g), newShellCommand(g),
		newVersionCommand(g), newDaemonCommand(g), newNamespaceHelperCommand(), newCredentialCommand(streams),
		install.NewInstallCommand(streams, g.kubeconfig, &printFlags{out: streams.Out}),
		install.NewUninstallCommand(streams, g.kubeconfig, &printFlags{out: streams.Out}),
	)
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(explainFlagError)
	for _, cmd := range root.Commands() {
		withUsage(cmd)
	}
	groupCommands(root)
	return root
}

// prepare selects the daemon that cmd is about, and repairs what a killed daemon has left behind.
func (g *globalOptions) prepare(cmd *cobra.Command) error {
	// client-go's log lines are not meant for users.
	klog.SetSlogLogger(slog.New(slog.DiscardHandler))
	switch {
	case cmd.Name() == credential.Command:
		return nil // it may still run as root
	case cmd.Parent() == nil:
		return nil // it only prints help
	}
	if err := g.selectDaemon(cmd); err != nil {
		return err
	}
	if cmd.Name() != daemonCommand && cmd.Name() != rootless.HelperCommand {
		g.restoreResolver(cmd.Context())
	}
	return nil
}

// explainFlagError replaces the messages of Go's parsers, which are not meant for users.
func explainFlagError(cmd *cobra.Command, err error) error {
	var value *pflag.InvalidValueError
	if errors.As(err, &value) {
		switch flag, cause := value.GetFlag(), value.Unwrap().Error(); {
		case flag.Value.Type() == "bool":
			err = fmt.Errorf("--%s must be true or false, not %q", flag.Name, value.GetValue())
		case strings.HasPrefix(cause, "time: "):
			err = fmt.Errorf("--%s %q is not a valid duration (for example %s)", flag.Name, value.GetValue(),
				flag.DefValue)
		}
	}
	return fmt.Errorf("%w: see `%s --help`", err, cmd.CommandPath())
}

// withUsage adds the usage line to the error about wrong arguments. Cobra only says how many it
// got.
func withUsage(cmd *cobra.Command) {
	check := cmd.Args
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		err := check(cmd, args)
		if err == nil {
			return nil
		}
		return fmt.Errorf("%w: usage: `%s`", err, strings.TrimSuffix(cmd.CommandPath(), cmd.Name())+cmd.Use)
	}
}

// groupCommands makes commands that only have subcommands print help, and rejects unknown
// subcommands, which cobra would treat as a help request.
func groupCommands(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	completion, _, _ := root.Find([]string{"completion"})
	for _, shell := range completion.Commands() {
		withUsage(shell)
	}
	for _, cmd := range append(root.Commands(), root) {
		switch {
		case cmd.Name() == "help":
			cmd.Args = func(_ *cobra.Command, args []string) error {
				if found, _, err := root.Find(args); err != nil || found == root && len(args) > 0 {
					return unknownCommand(root, args)
				}
				return nil
			}
		case cmd.HasSubCommands():
			cmd.Args = unknownCommand
			cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
		}
	}
}

// unknownCommand refuses the name of a subcommand that parent does not have.
func unknownCommand(parent *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if similar := parent.SuggestionsFor(args[0]); len(similar) > 0 {
		return fmt.Errorf("there is no command %q: did you mean `%s %s`?", args[0], parent.CommandPath(), similar[0])
	}
	return fmt.Errorf("there is no command %q: see `%s --help`", args[0], parent.CommandPath())
}
