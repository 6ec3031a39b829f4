// Command traffic is the traffic-manager.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/detour-dev/detour/pkg/traffic/manager"
	"github.com/detour-dev/detour/pkg/version"
	"github.com/detour-dev/detour/pkg/wellknown"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := command().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "traffic:", err)
		stop()
		os.Exit(1) //nolint:gocritic // stop was called
	}
}

func command() *cobra.Command {
	root := &cobra.Command{
		Use: "traffic", Short: "The in-cluster side of detour",
		SilenceUsage: true, SilenceErrors: true, Version: version.Version,
	}
	root.AddCommand(managerCommand())
	return root
}

// managerCommand runs the traffic-manager. The chart sets its flags and the environment.
func managerCommand() *cobra.Command {
	o := manager.Options{
		PodName: os.Getenv("POD_NAME"), PodNamespace: os.Getenv("POD_NAMESPACE"), PodIP: os.Getenv("POD_IP"),
		NodeName: os.Getenv("NODE_NAME"),
	}
	level := "info"
	cmd := &cobra.Command{
		Use: "manager", Short: "Run the traffic-manager", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var l slog.Level
			if err := l.UnmarshalText([]byte(level)); err != nil {
				return fmt.Errorf("--log-level: %w", err)
			}
			o.Log = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l}))
			return manager.Run(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.AgentImage, "agent-image", "", "image of the traffic-agent")
	f.StringVar(&o.AgentPullPolicy, "agent-image-pull-policy", "IfNotPresent", "pull policy of that image")
	f.StringVar(&o.SessionCIDR, "session-cidr", "198.18.0.0/16", "IPv4 addresses of the laptops")
	f.StringVar(&o.SessionCIDR6, "session-cidr6", "fd64:6574:6f75:72::/64",
		"IPv6 addresses of the laptops, empty for none")
	f.StringVar(&o.ClusterDomain, "cluster-domain", "cluster.local", "DNS domain of the cluster")
	f.StringVar(&o.UDP, "udp", "",
		"how laptops reach the manager's UDP port: NodePort, LoadBalancer or HostPort; empty if they cannot")
	f.Uint16Var(&o.UDPHostPort, "udp-host-port", wellknown.WireGuardPort, "with --udp=HostPort: the port of the node")
	f.DurationVar(&o.StaleAfter, "stale-after", 5*time.Second,
		"how long a laptop may be silent before its traffic goes to the cluster's pods")
	f.DurationVar(&o.SessionTTL, "session-ttl", 10*time.Minute,
		"how long a laptop may be silent before its session is deleted")
	f.StringVar(&level, "log-level", level, "debug, info, warn or error")
	return cmd
}
