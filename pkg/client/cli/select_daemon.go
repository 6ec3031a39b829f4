package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/client/ipc"
)

// rootlessByDefault reports whether the daemon is rootless unless a flag says otherwise. Root needs
// no namespaces, and only Linux has them.
func rootlessByDefault() bool { return runtime.GOOS == "linux" && os.Geteuid() != 0 }

// selectDaemon finds the daemon that cmd is about. If --rootless is set, it is the daemon of that
// mode. Otherwise it is a daemon that runs, the user's own before root's.
func (g *globalOptions) selectDaemon(cmd *cobra.Command) error {
	if flag := cmd.Flags().Lookup("rootless"); flag != nil && flag.Changed {
		rootless := flag.Value.String() == "true"
		if rootless && runtime.GOOS != "linux" {
			return fmt.Errorf("--rootless works on Linux only, not on %s", runtime.GOOS)
		}
		g.paths = ipc.DefaultPaths(rootless)
		return g.paths.Check()
	}
	g.paths = ipc.DefaultPaths(rootlessByDefault())
	if runtime.GOOS == "linux" && cmd.Name() != daemonCommand {
		ctx := cmd.Context()
		other := ipc.DefaultPaths(!rootlessByDefault())
		if !daemonRuns(ctx, g.paths) && daemonRuns(ctx, other) {
			g.paths = other
		}
	}
	return g.paths.Check()
}

// daemonRuns reports whether a daemon of this user runs at p. A daemon that does not respond
// counts: the command reports it.
func daemonRuns(ctx context.Context, p ipc.Paths) bool {
	if p.Check() != nil {
		return false
	}
	client, err := dialDaemon(ctx, p)
	switch {
	case err == nil:
		client.Close()
		return true
	case errors.Is(err, ipc.ErrNoDaemon), errors.Is(err, ipc.ErrOtherUser):
		return false
	}
	return true
}
