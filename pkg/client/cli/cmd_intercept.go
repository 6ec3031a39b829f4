package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/spf13/cobra"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/rootless"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func newInterceptCommand(g *globalOptions) *cobra.Command {
	o := &interceptOptions{sessionOptions: sessionOptions{globalOptions: g}, printFlags: printFlags{out: g.Out}}
	cmd := &cobra.Command{
		Use:   "intercept SERVICE|WORKLOAD --port LOCAL[:REMOTE] [-- COMMAND [ARGS...]]",
		Short: "Send a service's traffic, or only your requests, to a port of this laptop",
		Args:  targetAndCommand,
		Long: `Sends the traffic of one port of a service to 127.0.0.1:LOCAL. REMOTE is the number or the name of the
service's port. Omit it if the service has only one.

With conditions (--me, --header, --query, --path, --path-prefix, --method) only the HTTP requests that
meet all of them go to the laptop. All other requests stay in the cluster.

With --mode replace the app's container does not run during the intercept. It neither serves the
port nor takes work from a queue. A WORKLOAD, such as deployment/worker or just its name, needs no
port.

With --mode ingest no traffic moves. In every mode COMMAND gets the environment of the app's
container, as far as you may read its ConfigMaps and Secrets. --env-file and --env-json write that
environment to files that only you can read.

detour connects first if it is not connected, and returns when the traffic arrives at the laptop. With
COMMAND, detour runs it on the cluster's network and ends the intercept when it ends. detour then ends
with the exit code of COMMAND. In the rootless mode, LOCAL is a port of a process that COMMAND,
` + "`detour run` or `detour shell`" + ` has started.`,
		Example: `  detour intercept catalog --port 8080
  detour intercept catalog --port 18080:http -n shop
  detour intercept catalog --port 8080 -- ./catalog --listen :8080
  detour intercept catalog --port 8080 --me
  detour intercept catalog --port 8080 --mode wiretap
  detour intercept worker --mode replace -- ./worker
  detour intercept catalog --mode ingest --env-file .env
  detour intercept catalog --port 8080 --header x-dev=alice --path-prefix /api
  detour intercept web --port 8443 --me --tls-secret web-tls`,
		RunE: runE(o),
	}
	o.addFlags(cmd.Flags())
	return cmd
}

// targetAndCommand takes one argument, and a command only after --.
func targetAndCommand(cmd *cobra.Command, args []string) error {
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		if len(args) == dash {
			return errors.New("there is no command after --")
		}
		args = args[:dash]
	}
	return cobra.ExactArgs(1)(cmd, args)
}

// Run makes the intercepts. With a command, it runs the command and ends the intercepts after it.
func (o *interceptOptions) Run(ctx context.Context) error {
	requests, err := o.requests()
	if err != nil {
		return err
	}
	s, err := ensureSession(ctx, &o.sessionOptions)
	if err != nil {
		return err
	}
	defer s.Close()
	if len(requests) > 1 { // before anything is rolled out for the first of them
		if _, err := s.CheckIntercepts(ctx, &daemonv1.CheckInterceptsRequest{Intercepts: requests}); err != nil {
			return err
		}
	}
	environment, err := o.environmentFor(ctx, s, requests[0])
	if err != nil {
		return err
	}
	i := &interceptor{session: s, requests: requests, print: o.printIntercepts, errOut: o.ErrOut}
	switch {
	case len(o.parsed.command) == 0:
		i.warn = true
		if err := i.make(ctx); err != nil {
			return err
		}
		return o.printIntercepts(o.Out, i)
	case o.is(detour.ModeIngest):
		return i.ingestAround(ctx, o.parsed.command, environment)
	}
	return i.interceptAround(ctx, o.parsed.command, environment)
}

// printIntercepts prints what i has made.
func (o *interceptOptions) printIntercepts(w io.Writer, i *interceptor) error {
	var value any = i.made
	if len(i.made) == 1 {
		value = i.made[0]
	}
	return o.printTo(w, value, func(w io.Writer) {
		for n := range i.made {
			printIntercept(w, i.requests[n], i.made[n], i.session.status.Rootless)
		}
	})
}

// interceptor makes the intercepts of one command line, all of them or none, and ends them.
type interceptor struct {
	session  *session
	requests []*daemonv1.InterceptRequest
	made     []*daemonv1.Intercept // in the order of requests
	print    func(io.Writer, *interceptor) error
	// printing orders the lines that several goroutines write to errOut.
	printing sync.Mutex
	errOut   io.Writer
	// warn prints warnings, such as that nothing listens on the local port. They do not apply to a
	// command that has just been started.
	warn bool
}

// make makes the intercepts and waits until their traffic flows. It makes them at the same time, so
// that the workload is rolled out once for all of its ports.
func (i *interceptor) make(ctx context.Context) error {
	made, failures := make([]*daemonv1.Intercept, len(i.requests)), make([]error, len(i.requests))
	var all sync.WaitGroup
	for n, r := range i.requests {
		all.Go(func() { made[n], failures[n] = i.makeOne(ctx, r) })
	}
	all.Wait()
	for _, err := range failures {
		if err == nil {
			continue
		}
		for _, m := range made {
			if m != nil {
				_, _ = i.session.Leave(context.WithoutCancel(ctx), &daemonv1.LeaveRequest{Service: m.Name})
			}
		}
		return err
	}
	i.made = made
	return nil
}

// println prints a line about one of the intercepts.
func (i *interceptor) println(words ...any) {
	i.printing.Lock()
	defer i.printing.Unlock()
	fmt.Fprintln(termSafeWriter{i.errOut}, words...)
}

// makeOne makes one intercept and waits until its traffic flows.
func (i *interceptor) makeOne(ctx context.Context, r *daemonv1.InterceptRequest) (*daemonv1.Intercept, error) {
	stream, err := i.session.Intercept(ctx, r)
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		if m.Warning != "" && i.warn {
			i.println("warning:", m.Warning)
		}
		if m.Progress != "" {
			i.println(m.Progress)
		}
		if m.Intercept != nil {
			return m.Intercept, nil
		}
	}
}

// leave ends all intercepts at the same time: no port of a replaced container is released without
// the others.
func (i *interceptor) leave(ctx context.Context) error {
	failures := make([]error, len(i.made))
	var all sync.WaitGroup
	for n, m := range i.made {
		all.Go(func() {
			request := &daemonv1.LeaveRequest{Service: m.Name}
			if _, err := i.session.Leave(context.WithoutCancel(ctx), request); err != nil {
				failures[n] = fmt.Errorf("leave %s: %w", targetOf(m), err)
			}
		})
	}
	all.Wait()
	if err := errors.Join(failures...); err != nil {
		return err
	}
	printEnded(i.errOut, i.made[0])
	return nil
}

// interceptAround runs a command on the cluster's network while its service is intercepted. The
// command starts first, because the traffic must find it listening.
func (i *interceptor) interceptAround(ctx context.Context, command, environment []string) error {
	p, err := rootless.Exec(namespacePID(i.session.status), command, environment)
	if err != nil {
		return startFailure(err)
	}
	// A command that ends before the intercept exists cancels it.
	making, cancel := context.WithCancel(ctx)
	defer cancel()
	var code error
	ended := make(chan struct{})
	go func() { // the receives from ended wait for it
		defer close(ended)
		code = waitForCommand(p)
		cancel()
	}()
	if err := i.make(making); err != nil {
		commandEndedFirst := making.Err() != nil
		p.Terminate()
		<-ended
		switch {
		case ctx.Err() != nil:
			return withExitCode(errors.New("interrupted: the intercept is canceled"), code)
		case commandEndedFirst:
			return withExitCode(errors.New("the command ended before its service was intercepted"), code)
		}
		return err
	}
	printed := i.print(i.errOut, i) // standard output belongs to the command
	<-ended
	return i.finish(ctx, code, printed)
}

// ingestAround runs a command while the cluster knows that the laptop uses the app's environment.
// The command starts last, because no traffic waits for it.
func (i *interceptor) ingestAround(ctx context.Context, command, environment []string) error {
	if err := i.make(ctx); err != nil {
		return err
	}
	printed := i.print(i.errOut, i)
	p, err := rootless.Exec(namespacePID(i.session.status), command, environment)
	if err != nil {
		if lerr := i.leave(ctx); lerr != nil {
			fmt.Fprintln(termSafeWriter{i.errOut}, "warning:", lerr)
		}
		return startFailure(err)
	}
	return i.finish(ctx, waitForCommand(p), printed)
}

// finish ends the intercepts after the command, and returns the error that decides the exit code:
// that of leaving, of the command, or of printing.
func (i *interceptor) finish(ctx context.Context, command, printed error) error {
	if err := i.leave(ctx); err != nil {
		return withExitCode(err, command)
	}
	if command != nil {
		return command
	}
	return printed
}

// targetOf names what an intercept is about, for users.
func targetOf(i *daemonv1.Intercept) string {
	if i.Service == "" {
		return i.Workload
	}
	return "service " + i.Service
}

// printEnded says what an intercept that has ended means for the cluster.
func printEnded(out io.Writer, i *daemonv1.Intercept) {
	w := termSafeWriter{out}
	switch i.Mode {
	case string(detour.ModeIngest):
		fmt.Fprintf(w, "left: %s\n", targetOf(i))
	case string(detour.ModeReplace):
		fmt.Fprintf(w, "left: %s, its container %s runs again\n", targetOf(i), i.Container)
	default:
		fmt.Fprintf(w, "left: %s, the cluster's pods answer again\n", targetOf(i))
	}
}

// printIntercept says what an intercept does, and how to send a request that goes to the laptop.
func printIntercept(out io.Writer, r *daemonv1.InterceptRequest, i *daemonv1.Intercept, rootless bool) {
	w := termSafeWriter{out}
	switch i.Mode {
	case string(detour.ModeIngest):
		fmt.Fprintf(w, "ingested: the environment of container %s of %s, no traffic\n", i.Container, i.Workload)
	case string(detour.ModeReplace):
		fmt.Fprintf(w, "replaced: container %s of %s does not run (pods %s)\n", i.Container, i.Workload, i.Agents)
	}
	if i.LocalPort == 0 {
		return
	}
	printPort(w, i)
	switch {
	case i.Mode == string(detour.ModeWiretap):
		fmt.Fprintf(w, "gets: %s\n", i.Requests)
	case i.Personal:
		fmt.Fprintf(w, "only: %s\n", i.Requests)
	}
	if !i.Personal {
		return
	}
	if line := curlCommand(r.Match, i); line != "" {
		if rootless { // the laptop itself cannot resolve the cluster's names
			line = "detour run -- " + line
		}
		fmt.Fprintf(w, "try: %s\n", line)
	}
}

func printPort(w io.Writer, i *daemonv1.Intercept) {
	verb := "intercepted"
	if i.Mode == string(detour.ModeWiretap) {
		verb = "tapped"
	}
	protocol := ""
	if i.Protocol != "" {
		protocol = "/" + i.Protocol
	}
	fmt.Fprintf(w, "%s: service %s, port %d%s of %s -> 127.0.0.1:%d (by %s, agents %s)\n",
		verb, i.Service, i.ContainerPort, protocol, i.Workload, i.LocalPort, i.Redirect, i.Agents)
}
