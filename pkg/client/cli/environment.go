package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"google.golang.org/grpc/status"

	"github.com/detour-dev/detour/pkg/client/environment"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// environmentFlags say what becomes of the environment of the app's container.
type environmentFlags struct {
	file, json string
	command    bool
}

func (e *environmentFlags) add(f *pflag.FlagSet) {
	f.StringVar(&e.file, "env-file", "", "write the environment of the app's container to this file, for a shell or an IDE")
	f.StringVar(&e.json, "env-json", "", "write the environment of the app's container to this file, as JSON")
	f.BoolVar(&e.command, "env", true, "run COMMAND with the environment of the app's container")
}

// ingest writes the files that are asked for, and returns the environment of a command.
func (a *app) ingest(ctx context.Context, e *environmentFlags, client daemonv1.DaemonServiceClient, r *daemonv1.InterceptRequest, command bool) ([]string, error) {
	own := os.Environ()
	files := e.file != "" || e.json != ""
	if !files && (!command || !e.command) {
		return own, nil
	}
	variables, err := a.variables(ctx, client, r)
	if err != nil && files {
		return nil, err
	}
	if err != nil { // it may need none
		fmt.Fprintf(harmlessly{a.ErrOut}, "warning: the command has not the environment of the app: %s\n", err)
		return own, nil
	}
	if e.file != "" {
		lines, out := environment.Lines(variables)
		if len(out) > 0 {
			fmt.Fprintf(harmlessly{a.ErrOut}, "warning: left out of %s, because a shell would run the name or the value: %s\n", e.file, quoted(out))
		}
		if err := environment.Write(e.file, lines); err != nil {
			return nil, err
		}
	}
	if e.json != "" {
		raw, err := environment.JSON(variables)
		if err != nil {
			return nil, err
		}
		if err := environment.Write(e.json, raw); err != nil {
			return nil, err
		}
	}
	if !e.command {
		return own, nil
	}
	return environment.Under(own, variables), nil
}

// quoted are names for people to read, whatever is in them.
func quoted(names []string) string {
	all := make([]string, 0, len(names))
	for _, name := range names {
		all = append(all, strconv.QuoteToGraphic(name))
	}
	return strings.Join(all, ", ")
}

// variables are those of the app's container. What the user may not read is missing, and a warning says so.
func (a *app) variables(ctx context.Context, client daemonv1.DaemonServiceClient, r *daemonv1.InterceptRequest) (map[string]string, error) {
	e, err := client.Environment(ctx, &daemonv1.EnvironmentRequest{Intercept: r})
	if err != nil {
		return nil, errors.New(status.Convert(err).Message())
	}
	if len(e.Missing) > 0 {
		fmt.Fprintf(harmlessly{a.ErrOut}, "warning: parts of the environment are missing: %s\n", strings.Join(e.Missing, ", "))
	}
	variables := map[string]string{}
	for name, value := range e.Variables {
		variables[name] = string(value)
	}
	return variables, nil
}

// checkPorts complains of a port that is asked for twice, before anything is rolled out for the others.
func checkPorts(ctx context.Context, client daemonv1.DaemonServiceClient, requests []*daemonv1.InterceptRequest) error {
	if len(requests) < 2 {
		return nil
	}
	_, err := client.CheckIntercepts(ctx, &daemonv1.CheckInterceptsRequest{Intercepts: requests})
	return err
}
