// Command traffic-agent is the sidecar of an intercepted pod, and the init container that redirects its ports. It is a program
// of its own, apart from the traffic-manager, because every pod pays for its memory.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/detour-dev/detour/pkg/traffic/agent"
	"github.com/detour-dev/detour/pkg/traffic/agentconfig"
	"github.com/detour-dev/detour/pkg/traffic/redirect"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "traffic-agent:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 || (args[0] != "agent" && args[0] != "init") {
		return fmt.Errorf("usage: traffic-agent agent|init")
	}
	config, err := agentconfig.FromEnv()
	if err != nil {
		return err
	}
	if args[0] == "init" {
		return redirect.Apply(config)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return agent.Run(ctx, config, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}
