package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func (a *app) interceptCommand() *cobra.Command {
	var port string
	var only matchFlags
	cmd := &cobra.Command{
		Use: "intercept SERVICE --port LOCAL[:REMOTE]", Short: "Send a service's traffic, or only your requests, to a port of this laptop", Args: cobra.ExactArgs(1),
		Long: `Sends the traffic of one port of a service to 127.0.0.1:LOCAL. REMOTE is the service's port, by number or name; it may be left out when
the service has one. With conditions (--me, --header, --query, --path, --path-prefix, --method) only the HTTP requests that meet all of them
go to the laptop; everybody else's stay in the cluster.
Connects first when nothing is connected. Returns when the traffic really flows.`,
		Example: `  detour intercept catalog --port 8080
  detour intercept catalog --port 18080:http -n shop
  detour intercept catalog --port 8080 --me
  detour intercept catalog --port 8080 --header x-dev=alice --path-prefix /api`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			local, remote, err := parsePort(port)
			if err != nil {
				return err
			}
			match, err := only.match()
			if err != nil {
				return err
			}
			return a.intercept(cmd.Context(), &daemonv1.InterceptRequest{Service: args[0], LocalPort: local, Port: remote, Match: match})
		},
	}
	cmd.Flags().StringVarP(&port, "port", "p", "", "LOCAL[:REMOTE] (required)")
	_ = cmd.MarkFlagRequired("port")
	only.add(cmd.Flags())
	a.outputFlag(cmd)
	a.managerFlag(cmd)
	return cmd
}

func (a *app) intercept(ctx context.Context, req *daemonv1.InterceptRequest) error {
	client, done, err := a.start(ctx)
	if err != nil {
		return err
	}
	defer done()
	s, err := client.Status(ctx, &daemonv1.StatusRequest{})
	if err != nil {
		return err
	}
	if *a.flags.Namespace != "" && s.Connected && *a.flags.Namespace != s.Namespace {
		return fmt.Errorf("connected to namespace %s, not to %s: run `detour quit` first", s.Namespace, *a.flags.Namespace)
	}
	if !s.Connected {
		if _, err := a.connect(ctx, client); err != nil {
			return err
		}
	}
	stream, err := client.Intercept(ctx, req)
	if err != nil {
		return err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if m.Warning != "" {
			fmt.Fprintln(a.ErrOut, "warning:", m.Warning)
		}
		if m.Progress != "" {
			fmt.Fprintln(a.ErrOut, m.Progress)
		}
		if i := m.Intercept; i != nil {
			return a.print(i, func(w io.Writer) {
				fmt.Fprintf(w, "intercepted: %s, port %d of %s -> 127.0.0.1:%d (by %s, agents %s)\n", "service "+i.Service, i.ContainerPort, i.Workload, i.LocalPort, i.Redirect, i.Agents)
				if i.Personal {
					fmt.Fprintf(w, "only: %s\n", i.Requests)
					if line := curl(req.Match, i); line != "" {
						fmt.Fprintf(w, "try: %s\n", line)
					}
				}
			})
		}
	}
}
