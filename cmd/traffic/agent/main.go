// Command traffic-agent is the sidecar of an intercepted pod, the init container that redirects the
// pod's ports, and the process that stands idle in place of a replaced container. It is a program
// of its own, apart from the traffic-manager, because every pod pays for its memory.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/traffic/agent"
	"github.com/detour-dev/detour/pkg/traffic/redirect"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "traffic-agent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == "idle" {
		return idle(ctx, args[1:])
	}
	if len(args) != 1 || (args[0] != "agent" && args[0] != "init" && args[0] != "pod-ends") {
		return fmt.Errorf("usage: traffic-agent agent|init|pod-ends|idle [LINGER]")
	}
	if args[0] == "pod-ends" {
		return agent.PodEnds(ctx)
	}
	config, err := agentconfig.FromEnv()
	if err != nil {
		return err
	}
	if args[0] == "init" {
		return redirect.Apply(config)
	}
	return agent.Run(ctx, config, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}

// idle does nothing until the kubelet ends the container, and then waits for the time that args
// names.
func idle(ctx context.Context, args []string) error {
	var linger time.Duration
	if len(args) > 0 {
		var err error
		if linger, err = time.ParseDuration(args[0]); err != nil {
			return fmt.Errorf("%q is not a valid duration (for example 5s): %w", args[0], err)
		}
	}
	fmt.Fprintln(os.Stderr, "this container is idle: a laptop does its work, see `kubectl get intercepts`")
	<-ctx.Done()
	time.Sleep(linger)
	return nil
}
