package cli

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"k8s.io/client-go/kubernetes"

	"github.com/detour-dev/detour/pkg/client/environment"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/client/kubeconfig"
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
func (a *app) ingest(ctx context.Context, e *environmentFlags, s *daemonv1.StatusResponse, r *daemonv1.InterceptRequest, command bool) ([]string, error) {
	own := os.Environ()
	files := e.file != "" || e.json != ""
	if !files && (!command || !e.command) {
		return own, nil
	}
	variables, err := a.variables(ctx, s, r)
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
func (a *app) variables(ctx context.Context, s *daemonv1.StatusResponse, r *daemonv1.InterceptRequest) (map[string]string, error) {
	loaded, err := kubeconfig.Load(a.flags)
	if err != nil {
		return nil, err
	}
	server := loaded.Config.Host
	if server != s.Server {
		return nil, fmt.Errorf("the kubeconfig is that of %s, and detour is connected to %s: use the same, or run `detour quit` first", server, s.Server)
	}
	clients, err := kubernetes.NewForConfig(loaded.Config)
	if err != nil {
		return nil, explain.Error(err, "connect to the cluster")
	}
	pod, container, err := environment.Find(ctx, clients, s.Namespace, r)
	if err != nil {
		return nil, explain.Context{Doing: "find the app's environment", Server: server, Namespace: s.Namespace}.Error(err)
	}
	variables, missing := environment.Of(pod, container, environment.NewCluster(ctx, clients, s.Namespace))
	if len(missing) > 0 {
		fmt.Fprintf(harmlessly{a.ErrOut}, "warning: parts of the environment are missing: %s\n", strings.Join(missing, ", "))
	}
	return variables, nil
}
