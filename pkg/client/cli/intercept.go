package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func (a *app) interceptCommand() *cobra.Command {
	var w wish
	cmd := &cobra.Command{
		Use: "intercept SERVICE|WORKLOAD --port LOCAL[:REMOTE] [-- COMMAND [ARGS...]]", Short: "Send a service's traffic, or only your requests, to a port of this laptop", Args: serviceAndCommand,
		Long: `Sends the traffic of one port of a service to 127.0.0.1:LOCAL. REMOTE is the service's port, by number or name; it may be left out when
the service has one. With conditions (--me, --header, --query, --path, --path-prefix, --method) only the HTTP requests that meet all of them
go to the laptop; everybody else's stay in the cluster.
With --mode replace the app's container does not run meanwhile: not for its port's traffic, nor for work that it takes from a queue. A WORKLOAD
such as deployment/worker, or its name alone, needs no port.
With --mode ingest no traffic moves. In every mode a COMMAND has the environment of the app's container, as far as you may read its ConfigMaps
and Secrets, and --env-file and --env-json write it to files that only you can read.
Connects first when nothing is connected. Returns when the traffic really flows. With a COMMAND, it is run on the cluster's network, and
the traffic goes back to the cluster when it ends; its exit code is detour's. Without root, LOCAL is a port of what such a COMMAND,
` + "`detour run` or `detour shell`" + ` runs.`,
		Example: `  detour intercept catalog --port 8080
  detour intercept catalog --port 18080:http -n shop
  detour intercept catalog --port 8080 -- ./catalog --listen :8080
  detour intercept catalog --port 8080 --me
  detour intercept catalog --port 8080 --mode wiretap
  detour intercept worker --mode replace -- ./worker
  detour intercept catalog --mode ingest --env-file .env
  detour intercept catalog --port 8080 --header x-dev=alice --path-prefix /api
  detour intercept web --port 8443 --me --tls-secret web-tls`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.checkOutput(); err != nil {
				return err
			}
			requests, err := w.requests(args[0])
			if err != nil {
				return err
			}
			if len(args) > 1 {
				return a.interceptFor(cmd.Context(), requests, &w.env, args[1:])
			}
			return a.intercept(cmd.Context(), requests, &w.env)
		},
	}
	w.add(cmd.Flags())
	a.outputFlag(cmd)
	a.modeFlags(cmd)
	return cmd
}

// intercept returns when the traffic flows.
func (a *app) intercept(ctx context.Context, requests []*daemonv1.InterceptRequest, env *environmentFlags) error {
	client, done, err := a.start(ctx)
	if err != nil {
		return err
	}
	defer done()
	s, err := a.connected(ctx, client)
	if err != nil {
		return err
	}
	if err := checkPorts(ctx, client, requests); err != nil {
		return err
	}
	if _, err := a.ingest(ctx, env, client, requests[0], false); err != nil {
		return err
	}
	made, err := a.interceptAll(ctx, client, requests, true)
	if err != nil {
		return err
	}
	return a.printIntercepts(a.Out, requests, made, s.Rootless)
}

// serviceAndCommand takes a command only after --, where it is meant.
func serviceAndCommand(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		if len(args) == dash {
			return errors.New("there is no command after --")
		}
		args = args[:dash]
	}
	return cobra.ExactArgs(1)(cmd, args)
}

// interceptAll makes all of them, or none. The warning that nothing listens is not for a command that has just been started.
func (a *app) interceptAll(ctx context.Context, client daemonv1.DaemonServiceClient, requests []*daemonv1.InterceptRequest, warn bool) ([]*daemonv1.Intercept, error) {
	// All at once: the workload is rolled out once for all of its ports.
	made, failures := make([]*daemonv1.Intercept, len(requests)), make([]error, len(requests))
	var all sync.WaitGroup
	for i, r := range requests {
		all.Go(func() { made[i], failures[i] = a.interceptOne(ctx, client, r, warn) })
	}
	all.Wait()
	for _, err := range failures {
		if err == nil {
			continue
		}
		for _, i := range made {
			if i != nil {
				_, _ = client.Leave(context.WithoutCancel(ctx), &daemonv1.LeaveRequest{Service: i.Name})
			}
		}
		return nil, err
	}
	return made, nil
}

func (a *app) printIntercepts(w io.Writer, requests []*daemonv1.InterceptRequest, made []*daemonv1.Intercept, rootless bool) error {
	var value any = made
	if len(made) == 1 {
		value = made[0]
	}
	return a.printTo(w, value, func(w io.Writer) {
		for i := range made {
			printIntercept(w, requests[i], made[i], rootless)
		}
	})
}

// interceptOne makes one and waits until its traffic flows.
func (a *app) interceptOne(ctx context.Context, client daemonv1.DaemonServiceClient, r *daemonv1.InterceptRequest, warn bool) (*daemonv1.Intercept, error) {
	stream, err := client.Intercept(ctx, r)
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if m.Warning != "" && warn {
			fmt.Fprintln(harmlessly{a.ErrOut}, "warning:", m.Warning)
		}
		if m.Progress != "" {
			fmt.Fprintln(harmlessly{a.ErrOut}, m.Progress)
		}
		if m.Intercept != nil {
			return m.Intercept, nil
		}
	}
}
