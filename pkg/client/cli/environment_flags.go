package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"

	"github.com/detour-dev/detour/pkg/client/environment"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// environmentFlags decide how the environment of the app's container is used.
type environmentFlags struct {
	file       string
	jsonFile   string
	forCommand bool
}

func (e *environmentFlags) addFlags(f *pflag.FlagSet) {
	f.StringVar(&e.file, "env-file", "", "write the environment of the app's container to this file, for a shell or "+
		"an IDE")
	f.StringVar(&e.jsonFile, "env-json", "", "write the environment of the app's container to this file, as JSON")
	f.BoolVar(&e.forCommand, "env", true, "run COMMAND with the environment of the app's container")
}

// environmentFor writes the files that the flags name, and returns the environment of COMMAND. The
// cluster is asked only if the environment is used.
func (o *interceptOptions) environmentFor(
	ctx context.Context, s *session, r *daemonv1.InterceptRequest,
) ([]string, error) {
	own := os.Environ()
	writesFiles := o.file != "" || o.jsonFile != ""
	runs := len(o.parsed.command) > 0 && o.forCommand
	if !writesFiles && !runs {
		return own, nil
	}
	variables, err := o.appEnvironment(ctx, s, r)
	if err != nil && writesFiles {
		return nil, err
	}
	if err != nil { // the command may not need it
		fmt.Fprintf(termSafeWriter{o.ErrOut}, "warning: running the command without the app's environment: %s\n", err)
		return own, nil
	}
	if err := o.writeEnvironment(variables); err != nil {
		return nil, err
	}
	if !runs {
		return own, nil
	}
	return environment.Merge(own, variables), nil
}

// writeEnvironment writes the files that the flags name.
func (o *interceptOptions) writeEnvironment(variables map[string]string) error {
	if o.file != "" {
		lines, omitted := environment.EnvFile(variables)
		if len(omitted) > 0 {
			fmt.Fprintf(termSafeWriter{o.ErrOut}, "warning: omitted from %s, because a shell would run the name or "+
				"the value: %s\n",
				o.file, quoteNames(omitted))
		}
		if err := environment.WriteFile(o.file, lines); err != nil {
			return err
		}
	}
	if o.jsonFile != "" {
		raw, err := environment.JSON(variables)
		if err != nil {
			return err
		}
		return environment.WriteFile(o.jsonFile, raw)
	}
	return nil
}

// quoteNames makes names readable, whatever characters they have.
func quoteNames(names []string) string {
	all := make([]string, 0, len(names))
	for _, name := range names {
		all = append(all, strconv.QuoteToGraphic(name))
	}
	return strings.Join(all, ", ")
}

// appEnvironment returns the environment of the app's container. It lacks what the user may not
// read, and a warning names that.
func (o *interceptOptions) appEnvironment(
	ctx context.Context, s *session, r *daemonv1.InterceptRequest,
) (map[string]string, error) {
	loaded, packed, err := o.packKubeconfig()
	if err != nil {
		return nil, err
	}
	e, err := s.Environment(ctx, &daemonv1.EnvironmentRequest{
		Intercept:             r,
		Kubeconfig:            packed,
		RequestTimeoutSeconds: loaded.Config.Timeout.Seconds(),
	})
	if err != nil {
		return nil, errors.New(message(err))
	}
	if len(e.Missing) > 0 {
		fmt.Fprintf(termSafeWriter{o.ErrOut}, "warning: parts of the environment are missing: %s\n",
			strings.Join(e.Missing, ", "))
	}
	variables := map[string]string{}
	for name, value := range e.Variables {
		variables[name] = string(value)
	}
	return variables, nil
}
