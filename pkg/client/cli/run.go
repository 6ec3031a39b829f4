package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/spf13/cobra"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/inside"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// exitError is the end of a command that detour ran: its exit code is detour's.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("the command ended with exit code %d", int(e)) }

func (a *app) runCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "run [flags] -- COMMAND [ARGS...]", Short: "Run a command on the cluster's network", Args: cobra.MinimumNArgs(1),
		Long: `Runs a command on the cluster's network, connecting first when nothing is connected. Without root this is the way onto that network:
the laptop itself stays as it is. The command's exit code is detour's.`,
		Example: "  detour run -- curl http://catalog.shop\n  detour run -n shop -- ./server --port 8080",
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.run(cmd.Context(), args)
		},
	}
	cmd.Flags().SetInterspersed(false)
	a.modeFlags(cmd)
	return cmd
}

func (a *app) shellCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "shell", Short: "Run $SHELL on the cluster's network", Args: cobra.NoArgs, Example: "  detour shell",
		RunE: func(cmd *cobra.Command, _ []string) error {
			shell := os.Getenv("SHELL")
			if shell == "" {
				shell = "/bin/sh"
			}
			return a.run(cmd.Context(), []string{shell})
		},
	}
	a.modeFlags(cmd)
	return cmd
}

func (a *app) run(ctx context.Context, args []string) error {
	client, done, err := a.start(ctx)
	if err != nil {
		return err
	}
	defer done()
	s, err := a.connected(ctx, client)
	if err != nil {
		return err
	}
	p, err := inside.Start(target(s), args, os.Environ())
	if err != nil {
		return started(err)
	}
	return ended(p)
}

// target is the process to whose namespaces a command goes; 0 for none, because they are the laptop's or this process is there already.
func target(s *daemonv1.StatusResponse) int {
	if id, err := os.Readlink("/proc/self/ns/net"); err == nil && id == s.NamespaceId {
		return 0
	}
	return int(s.NamespacePid)
}

// connected returns the status of a live session, and makes one when there is none.
func (a *app) connected(ctx context.Context, client daemonv1.DaemonServiceClient) (*daemonv1.StatusResponse, error) {
	s, err := client.Status(ctx, &daemonv1.StatusRequest{})
	if err != nil {
		return nil, err
	}
	if !s.Connected {
		return a.connect(ctx, client)
	}
	if *a.flags.Namespace != "" && *a.flags.Namespace != s.Namespace {
		return nil, fmt.Errorf("connected to namespace %s, not to %s: run `detour quit` first", s.Namespace, *a.flags.Namespace)
	}
	if *a.flags.Context != "" && *a.flags.Context != s.Context {
		return nil, fmt.Errorf("connected to context %s, not to %s: run `detour quit` first", s.Context, *a.flags.Context)
	}
	if a.hostLoopback || a.transport != "" || a.wished() {
		return a.connect(ctx, client) // the daemon knows whether the session has that
	}
	return s, nil
}

// started prints why a command did not start, and gives the exit code that a shell would give.
func started(err error) error {
	var failed *inside.StartError
	if errors.As(err, &failed) {
		return errors.Join(err, exitError(failed.Code))
	}
	return err
}

func ended(p inside.Process) error {
	code, err := p.Wait()
	if err != nil {
		return err
	}
	if code != 0 {
		return exitError(code)
	}
	return nil
}

// interceptFor runs a command inside while its service is intercepted.
func (a *app) interceptFor(ctx context.Context, requests []*daemonv1.InterceptRequest, env *environmentFlags, args []string) error {
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
	environment, err := a.ingest(ctx, env, client, requests[0], true)
	if err != nil {
		return err
	}
	if requests[0].Mode == string(detour.ModeIngest) {
		// No traffic waits for the command.
		return a.ingestFor(ctx, client, requests, s, args, environment)
	}
	p, err := inside.Start(target(s), args, environment)
	if err != nil {
		return started(err)
	}
	// A command that ends before the intercept is there takes the wish for it along.
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	var code error
	over := make(chan struct{})
	go func() {
		defer close(over)
		code = ended(p)
		cancel()
	}()
	made, err := a.interceptAll(waiting, client, requests, false)
	if err != nil {
		before := waiting.Err() != nil
		p.Terminate()
		<-over
		switch {
		case ctx.Err() != nil:
			return errors.Join(errors.New("interrupted: the intercept is taken back"), code)
		case before:
			return errors.Join(errors.New("the command ended before its service was intercepted"), code)
		}
		return err
	}
	printed := a.printIntercepts(a.ErrOut, requests, made, s.Rootless) // standard output is the command's
	<-over
	if err := a.leaveAll(ctx, client, made); err != nil {
		return errors.Join(err, code)
	}
	if code == nil {
		return printed
	}
	return code
}

// ingestFor runs a command while the cluster knows that the laptop has the app's environment.
func (a *app) ingestFor(ctx context.Context, client daemonv1.DaemonServiceClient, requests []*daemonv1.InterceptRequest, s *daemonv1.StatusResponse, args, environment []string) error {
	made, err := a.interceptAll(ctx, client, requests, false)
	if err != nil {
		return err
	}
	printed := a.printIntercepts(a.ErrOut, requests, made, s.Rootless)
	p, err := inside.Start(target(s), args, environment)
	if err != nil {
		if lerr := a.leaveAll(ctx, client, made); lerr != nil {
			fmt.Fprintln(harmlessly{a.ErrOut}, "warning:", lerr)
		}
		return started(err)
	}
	code := ended(p)
	if err := a.leaveAll(ctx, client, made); err != nil {
		return errors.Join(err, code)
	}
	if code == nil {
		return printed
	}
	return code
}

// leaveAll gives back what a command had, all at once: no port of a replaced container is done without the others.
func (a *app) leaveAll(ctx context.Context, client daemonv1.DaemonServiceClient, made []*daemonv1.Intercept) error {
	failures := make([]error, len(made))
	var all sync.WaitGroup
	for n, i := range made {
		all.Go(func() {
			if _, err := client.Leave(context.WithoutCancel(ctx), &daemonv1.LeaveRequest{Service: i.Name}); err != nil {
				failures[n] = fmt.Errorf("leave %s: %w", nameOf(i), err)
			}
		})
	}
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	printLeft(a.ErrOut, made[0])
	return nil
}
