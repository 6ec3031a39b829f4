// Command traffic-keeper is the first process of the sidecar. It runs the traffic-agent, and starts
// it again when it dies. It is a program of its own because it has to be small.
package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/traffic/keeper"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "traffic-keeper:", err)
		os.Exit(1)
	}
}

func run(command []string) error {
	if len(command) == 0 {
		return fmt.Errorf("usage: traffic-keeper COMMAND")
	}
	config, err := agentconfig.FromEnv()
	if err != nil {
		return err
	}
	ports := []uint16{agentconfig.HealthPort}
	for _, p := range config.Ports {
		if !p.Datagrams { // datagrams have no connections that could wait
			ports = append(ports, p.Agent)
		}
	}
	return keeper.Run(ports, command, slog.New(slog.NewTextHandler(os.Stderr, nil)))
}
