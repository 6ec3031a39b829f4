package cli

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/client/tunnel"
	"github.com/detour-dev/detour/pkg/vif"
)

// modeFlags are of the commands that connect.
func (a *app) modeFlags(cmd *cobra.Command) {
	a.managerFlag(cmd)
	wishFlags(cmd.Flags(), &a.overrides)
	cmd.Flags().BoolVar(&a.rootless, "rootless", canRootless(), "keep the network in namespaces, for 'detour run', and leave the laptop alone; false: a network interface of the laptop, with sudo")
	cmd.Flags().BoolVar(&a.hostLoopback, "host-loopback", false, "with --rootless: let processes inside reach this laptop's 127.0.0.1, as "+vif.HostLoopback.String())
	cmd.Flags().StringVar(&a.transport, "transport", "", "the tunnel's path: auto, the best that works, or only upgrade or portforward (default auto)")
}

// canRootless is the mode when nobody says which: root has no need of namespaces, and only Linux has them.
func canRootless() bool { return runtime.GOOS == "linux" && os.Geteuid() != 0 }

// choose finds the daemon that a command is about: the one of the mode that a flag names, or one that runs, the user's own first.
func (a *app) choose(cmd *cobra.Command) error {
	flag := cmd.Flags().Lookup("rootless")
	if flag != nil && flag.Changed {
		if a.rootless && runtime.GOOS != "linux" {
			return fmt.Errorf("--rootless is there on Linux only, not on %s", runtime.GOOS)
		}
		a.paths = ipc.DefaultPaths(a.rootless)
	} else {
		a.paths = ipc.DefaultPaths(canRootless())
		if other := ipc.DefaultPaths(!canRootless()); runtime.GOOS == "linux" && cmd.Name() != "daemon" && !answers(a.paths) && answers(other) {
			a.paths = other
		}
	}
	if err := a.paths.Check(); err != nil {
		return err
	}
	if f := cmd.Flags().Lookup("manager-namespace"); f != nil {
		if err := explain.Name("--manager-namespace", f.Value.String()); err != nil {
			return err
		}
	}
	if err := tunnel.CheckTransport(a.transport); err != nil {
		return err
	}
	if a.hostLoopback && !a.paths.Rootless {
		return errors.New("--host-loopback is for --rootless: otherwise the laptop's loopback is the laptop's own, leave it out")
	}
	return a.checkWishes()
}

// answers says whether a daemon of this user's runs; one that does not answer does, for the command itself to say so.
func answers(p ipc.Paths) bool {
	if p.Check() != nil {
		return false
	}
	conn, err := reach(p)
	if conn != nil {
		_ = conn.Close()
	}
	return conn != nil || err != nil && !errors.Is(err, ipc.ErrOtherUser)
}

func (a *app) holdCommand() *cobra.Command {
	return &cobra.Command{
		Use: "hold", Short: "Hold the namespaces of the rootless mode", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return vif.Hold(os.NewFile(3, "daemon")) },
	}
}
