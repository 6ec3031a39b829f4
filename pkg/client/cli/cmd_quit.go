package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

const (
	// quitNoticeDelay is how long `detour quit` waits before it says what it waits for.
	quitNoticeDelay = 2 * time.Second
	// daemonEndTimeout bounds the wait until a daemon that has quit closes its socket.
	daemonEndTimeout = 5 * time.Second
)

// quitOptions are the flags of `detour quit`.
type quitOptions struct {
	*globalOptions
	noArguments
	printFlags
}

func newQuitCommand(g *globalOptions) *cobra.Command {
	o := &quitOptions{globalOptions: g, printFlags: printFlags{out: g.Out}}
	cmd := &cobra.Command{
		Use:     "quit",
		Short:   "Leave all intercepts, disconnect and restore the laptop's network",
		Args:    cobra.NoArgs,
		Example: "  detour quit",
		RunE:    runE(o),
	}
	o.printFlags.AddFlags(cmd.Flags())
	return cmd
}

// Run ends the daemon and waits until it has ended.
func (o *quitOptions) Run(ctx context.Context) error {
	client, err := dialDaemon(ctx, o.paths)
	if errors.Is(err, ipc.ErrNoDaemon) {
		return o.print(&daemonv1.QuitResponse{})
	} else if err != nil {
		return err
	}
	defer client.Close()
	notice := time.AfterFunc(quitNoticeDelay, func() {
		fmt.Fprintln(o.ErrOut, "waiting until this laptop has answered its open requests, for at most 10 s")
	})
	r, err := client.Quit(ctx, &daemonv1.QuitRequest{})
	notice.Stop()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(daemonEndTimeout); time.Now().Before(deadline) && !noDaemon(ctx, o.paths); {
		time.Sleep(pollInterval)
	}
	return o.print(r)
}

func (o *quitOptions) print(r *daemonv1.QuitResponse) error {
	value := map[string]any{"wasConnected": r.WasConnected}
	if r.NotDeleted != "" {
		value["untold"] = r.NotDeleted
	}
	return o.Print(value, func(w io.Writer) { printQuit(w, r) })
}

func printQuit(out io.Writer, r *daemonv1.QuitResponse) {
	w := termSafeWriter{out}
	if r.WasConnected {
		fmt.Fprintln(w, "disconnected; the laptop's network is restored")
	} else {
		fmt.Fprintln(w, "not connected")
	}
	if r.NotDeleted != "" {
		fmt.Fprintln(w, "the session could not be deleted in the cluster; the traffic-manager ends it when its time "+
			"to live is over:", r.NotDeleted)
	}
}
