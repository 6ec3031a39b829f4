package cli

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/client/daemon"
)

// daemonCommand is the name of the command that the others start in the background.
const daemonCommand = "daemon"

// daemonOptions are the flags of the daemon command.
type daemonOptions struct {
	*globalOptions
	noArguments
	detach bool
}

func newDaemonCommand(g *globalOptions) *cobra.Command {
	o := &daemonOptions{globalOptions: g}
	cmd := &cobra.Command{
		Use:    daemonCommand,
		Short:  "Run the daemon in the foreground",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   runE(o),
	}
	// selectDaemon reads this flag.
	cmd.Flags().Bool("rootless", rootlessByDefault(), "keep the cluster's network in namespaces")
	cmd.Flags().BoolVar(&o.detach, "detach", false, "run in the background")
	return cmd
}

// Validate implements commandOptions.
func (*daemonOptions) Validate() error { return nil }

// Run runs the daemon until it ends, or starts it in the background with --detach.
func (o *daemonOptions) Run(ctx context.Context) error {
	if o.detach {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the detour binary: %w", err)
		}
		return o.detachDaemon(exe)
	}
	return daemon.Run(ctx, o.paths, slog.New(slog.NewTextHandler(o.ErrOut, &slog.HandlerOptions{Level: logLevel()})))
}

// logLevel returns the daemon's log level from $DETOUR_LOG: debug, info, warn or error. It is info
// if the variable is not set.
func logLevel() slog.Level {
	var level slog.Level
	if err := level.UnmarshalText([]byte(os.Getenv("DETOUR_LOG"))); err != nil {
		return slog.LevelInfo
	}
	return level
}
