package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/pflag"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// wish is what the flags of `detour intercept` ask for.
type wish struct {
	ports                      []string
	only                       matchFlags
	ttl                        lifetime
	onFailure, mode, container string
	secret                     string
	plaintext, attach          bool
	env                        environmentFlags
	given                      func(flag string) bool
}

func (w *wish) add(f *pflag.FlagSet) {
	w.given = f.Changed
	f.StringArrayVarP(&w.ports, "port", "p", nil, "LOCAL[:REMOTE[/udp]], or ranges such as 9000-9010:9000-9010 (required, but for --mode ingest and a workload that is replaced; repeatable)")
	f.Var(&w.ttl, "ttl", "end the intercept after this time, such as 2h; 0 lets it live as long as the connection")
	f.StringVar(&w.onFailure, "on-failure", "fallback", "who answers when this laptop cannot: fallback (the cluster's pods) or error (nobody)")
	f.StringVar(&w.mode, "mode", "intercept", "intercept; wiretap for a copy of the requests while the cluster's pods answer; replace for the app's container not to run meanwhile; ingest for no traffic, only the app's environment")
	f.StringVar(&w.container, "container", "", "with --mode replace or ingest: which container of the pod, where it is not clear")
	f.StringVar(&w.secret, "tls-secret", "", "where the port speaks TLS: the Secret of its pods with their certificate, with which the agents in them tell requests apart")
	f.BoolVar(&w.plaintext, "local-plaintext", false, "with --tls-secret: the process on this laptop does not speak TLS")
	f.BoolVar(&w.attach, "attach", false, "put the agent into the running pods and restart none; TCP only, and connections that are open stay with the app")
	w.env.add(f)
	w.only.add(f)
}

// lifetime is a time in whole seconds.
type lifetime time.Duration

// Set implements pflag.Value.
func (l *lifetime) Set(s string) error {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d%time.Second != 0 {
		return errors.New("write whole seconds, minutes or hours, as in --ttl 2h")
	}
	*l = lifetime(d)
	return nil
}

// String implements pflag.Value.
func (l *lifetime) String() string {
	if *l == 0 {
		return ""
	}
	return time.Duration(*l).String()
}

// Type implements pflag.Value.
func (l *lifetime) Type() string { return "duration" }

var modes = map[string]detour.Mode{"intercept": detour.ModeIntercept, "wiretap": detour.ModeWiretap, "replace": detour.ModeReplace, "ingest": detour.ModeIngest}

// requests are one for each port, or one for the workload.
func (w *wish) requests(target string) ([]*daemonv1.InterceptRequest, error) {
	// A variable of the shell that is not set is no wish.
	for flag, value := range map[string]string{"mode": w.mode, "on-failure": w.onFailure, "container": w.container, "tls-secret": w.secret, "env-file": w.env.file, "env-json": w.env.json} {
		if value == "" && w.given(flag) {
			return nil, fmt.Errorf("--%s is empty: give it a value, or leave it out", flag)
		}
	}
	match, err := w.only.match()
	if err != nil {
		return nil, err
	}
	if w.onFailure != "fallback" && w.onFailure != "error" {
		return nil, fmt.Errorf("--on-failure %s is not known: use fallback (the cluster's pods answer) or error", w.onFailure)
	}
	mode, known := modes[w.mode]
	replaces, ingests := mode == detour.ModeReplace, mode == detour.ModeIngest
	workload := strings.Contains(target, "/")
	switch {
	case !known:
		return nil, fmt.Errorf("--mode %s is not known: use intercept, wiretap (a copy of the requests; the cluster's pods answer), replace (the app's container does not run) or ingest (only the app's environment)", w.mode)
	case target == "":
		return nil, errors.New("the name of the service is empty: say whose traffic you want, as in detour intercept catalog --port 8080")
	case replaces && match != nil:
		return nil, errors.New("--mode replace takes everything, since the app does not run: leave out the conditions, or use --mode intercept")
	case replaces && w.onFailure == "fallback" && w.given("on-failure"):
		return nil, errors.New("--on-failure fallback: with --mode replace the app does not run, so nothing can answer for this laptop: leave it out, or use --mode intercept")
	case mode == detour.ModeWiretap && w.onFailure == "error":
		return nil, errors.New("--on-failure error: with --mode wiretap the cluster's pods answer in any case: leave it out")
	case ingests && w.given("on-failure"):
		return nil, errors.New("--on-failure: --mode ingest takes no traffic: leave it out")
	case w.container != "" && !replaces && !ingests:
		return nil, errors.New("--container is for --mode replace and --mode ingest: use one of them, or leave it out")
	case w.attach && replaces:
		return nil, errors.New("--attach restarts no pod, and --mode replace needs new ones: use one of them")
	case w.attach && ingests:
		return nil, errors.New("--mode ingest restarts no pod and needs no agent: leave out --attach")
	case w.attach && w.secret != "":
		return nil, errors.New("--attach restarts no pod, and a running one cannot get the volume of --tls-secret: use one of them")
	case ingests && (len(w.ports) > 0 || match != nil || w.secret != ""):
		return nil, errors.New("--mode ingest takes no traffic: leave out ports, conditions and --tls-secret, or use --mode intercept")
	case workload && !replaces && !ingests:
		return nil, fmt.Errorf("%s is not a service: name the service whose traffic you want, or use --mode replace or ingest", target)
	case workload && len(w.ports) > 0:
		return nil, fmt.Errorf("--port is of a service: name the service in place of %s, or leave out --port", target)
	case w.secret != "" && match == nil && mode != detour.ModeWiretap:
		return nil, errors.New("--tls-secret is for a part of the requests: all of a port goes to this laptop as it is, TLS included: add a condition such as --me, or leave it out")
	case w.plaintext && w.secret == "":
		return nil, errors.New("--local-plaintext is for --tls-secret: without it nobody looks into TLS: add it, or leave this out")
	case len(w.ports) == 0 && !replaces && !ingests:
		return nil, errors.New("--port is missing: say where this laptop listens, as in --port 8080")
	}
	if !workload {
		if err := explain.Name("the service", target); err != nil {
			return nil, err
		}
	}
	request := func() *daemonv1.InterceptRequest {
		return &daemonv1.InterceptRequest{Match: match, TtlSeconds: int64(time.Duration(w.ttl) / time.Second), ErrorOnFailure: w.onFailure == "error", Mode: string(mode), Container: w.container, Attach: w.attach, TlsSecret: w.secret, LocalPlaintext: w.plaintext}
	}
	if len(w.ports) == 0 {
		r := request()
		if ingests && !workload {
			r.Service = target
			return []*daemonv1.InterceptRequest{r}, nil
		}
		if r.Workload, err = parseWorkload(target); err != nil {
			return nil, err
		}
		return []*daemonv1.InterceptRequest{r}, nil
	}
	var all []*daemonv1.InterceptRequest
	given := map[string]bool{}
	for _, flag := range w.ports {
		ports, err := parsePorts(flag)
		if err != nil {
			return nil, err
		}
		for _, p := range ports {
			if p.remote == "" && len(w.ports) > 1 {
				return nil, fmt.Errorf("--port %s: with several ports say for each which of the service's it is, as in --port 8080:http --port 9090:grpc", flag)
			}
			remote := p.remote + "/" + p.protocol
			if given[remote] {
				return nil, fmt.Errorf("--port %s: the service's port %s is given twice, and its traffic can go to one port of this laptop", flag, p.remote)
			}
			given[remote] = true
			r := request()
			r.Service, r.LocalPort, r.Port, r.Protocol = target, p.local, p.remote, p.protocol
			all = append(all, r)
		}
	}
	return all, nil
}

// parseWorkload takes NAME and KIND/NAME, in kubectl's spellings, and gives the kind its name in the API.
func parseWorkload(s string) (string, error) {
	kind, name, ok := strings.Cut(s, "/")
	if !ok {
		return s, nil
	}
	for full, short := range map[string]string{"Deployment": "deploy", "StatefulSet": "sts", "DaemonSet": "ds", "Rollout": "ro"} {
		lower := strings.ToLower(full)
		switch strings.ToLower(kind) {
		case lower, lower + "s", short:
			if name == "" {
				return "", fmt.Errorf("%s has no name after the kind: write for example %s/worker", s, kind)
			}
			return full + "/" + name, explain.Name("the "+lower, name)
		}
	}
	return "", fmt.Errorf("%s is of no kind that can be replaced: use deployment/NAME, statefulset/NAME, daemonset/NAME or rollout/NAME", s)
}

// nameOf is what an intercept is of, for people.
func nameOf(i *daemonv1.Intercept) string {
	if i.Service == "" {
		return i.Workload
	}
	return "service " + i.Service
}

func printLeft(out io.Writer, i *daemonv1.Intercept) {
	w := harmlessly{out}
	switch i.Mode {
	case string(detour.ModeIngest):
		fmt.Fprintf(w, "left: %s\n", nameOf(i))
		return
	case string(detour.ModeReplace):
		fmt.Fprintf(w, "left: %s, its container %s runs again\n", nameOf(i), i.Container)
		return
	}
	fmt.Fprintf(w, "left: %s, the cluster's pods answer again\n", nameOf(i))
}

func printIntercept(out io.Writer, r *daemonv1.InterceptRequest, i *daemonv1.Intercept, rootless bool) {
	w := harmlessly{out}
	switch i.Mode {
	case string(detour.ModeIngest):
		fmt.Fprintf(w, "ingested: the environment of container %s of %s, no traffic\n", i.Container, i.Workload)
	case string(detour.ModeReplace):
		fmt.Fprintf(w, "replaced: container %s of %s does not run (pods %s)\n", i.Container, i.Workload, i.Agents)
	}
	if i.LocalPort == 0 {
		return
	}
	did := "intercepted"
	if i.Mode == string(detour.ModeWiretap) {
		did = "tapped"
	}
	protocol := ""
	if i.Protocol != "" {
		protocol = "/" + i.Protocol
	}
	fmt.Fprintf(w, did+": service %s, port %d%s of %s -> 127.0.0.1:%d (by %s, agents %s)\n", i.Service, i.ContainerPort, protocol, i.Workload, i.LocalPort, i.Redirect, i.Agents)
	switch {
	case i.Mode == string(detour.ModeWiretap):
		fmt.Fprintf(w, "gets: %s\n", i.Requests)
	case i.Personal:
		fmt.Fprintf(w, "only: %s\n", i.Requests)
	}
	if !i.Personal {
		return
	}
	if line := curl(r.Match, i); line != "" {
		if rootless { // the laptop itself does not know the cluster's names
			line = "detour run -- " + line
		}
		fmt.Fprintf(w, "try: %s\n", line)
	}
}
