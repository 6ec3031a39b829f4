package cli

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// The values of --on-failure.
const (
	onFailureFallback = "fallback"
	onFailureError    = "error"
)

// interceptOptions are the flags and arguments of `detour intercept`.
type interceptOptions struct {
	sessionOptions
	printFlags
	environmentFlags
	matchFlags
	portFlags []string
	ttl       wholeSeconds
	onFailure string
	mode      string
	container string
	attach    bool
	tls       tlsFlags
	changed   func(flag string) bool
	parsed    parsedIntercept // Complete sets it
}

// tlsFlags are for a port whose requests the agent can tell apart only after decrypting them.
type tlsFlags struct {
	secret         string
	localPlaintext bool
}

// parsedIntercept are the flags and arguments after Complete.
type parsedIntercept struct {
	target  string // SERVICE, KIND/NAME or NAME
	command []string
	match   *agentv1.Match // nil without conditions
	ports   []portMapping
}

func (o *interceptOptions) addFlags(f *pflag.FlagSet) {
	o.changed = f.Changed
	f.StringArrayVarP(&o.portFlags, "port", "p", nil, "LOCAL[:REMOTE[/udp]], or ranges such as 9000-9010:9000-9010 "+
		"(repeatable; required unless --mode is ingest or a workload is replaced)")
	f.Var(&o.ttl, "ttl", "end the intercept after this time, such as 2h; 0: when the session ends")
	f.StringVar(&o.onFailure, "on-failure", onFailureFallback,
		"who answers if this laptop cannot: fallback (the cluster's pods) or error (requests fail)")
	f.StringVar(&o.mode, "mode", "intercept", "intercept; wiretap: the laptop gets copies of the requests, and the "+
		"cluster's pods "+
		"answer them; replace: the app's container does not run; ingest: no traffic moves, only the app's "+
		"environment is read")
	f.StringVar(&o.container, "container", "", "with --mode replace or ingest: the container of the pod, if there "+
		"are several")
	f.StringVar(&o.tls.secret, "tls-secret", "", "if the port speaks TLS: the Secret of its pods with their "+
		"certificate, "+
		"with which the agents decrypt requests to tell them apart")
	f.BoolVar(&o.tls.localPlaintext, "local-plaintext", false, "with --tls-secret: the process on this laptop does "+
		"not speak TLS")
	f.BoolVar(&o.attach, "attach", false, "attach the agent to the running pods instead of restarting them; "+
		"TCP only, and open connections stay with the app")
	o.environmentFlags.addFlags(f)
	o.matchFlags.addFlags(f)
	o.printFlags.AddFlags(f)
	o.sessionOptions.addFlags(f)
}

// wholeSeconds is a flag with a duration in whole seconds.
type wholeSeconds time.Duration

// Set implements pflag.Value.
func (d *wholeSeconds) Set(s string) error {
	v, err := time.ParseDuration(s)
	if err != nil || v < 0 || v%time.Second != 0 {
		return errors.New("write whole seconds, minutes or hours, as in --ttl 2h")
	}
	*d = wholeSeconds(v)
	return nil
}

// String implements pflag.Value.
func (d *wholeSeconds) String() string {
	if *d == 0 {
		return ""
	}
	return time.Duration(*d).String()
}

// Type implements pflag.Value.
func (d *wholeSeconds) Type() string { return "duration" }

// Complete implements commandOptions.
func (o *interceptOptions) Complete(args []string) (err error) {
	o.parsed.target, o.parsed.command = args[0], args[1:]
	if o.parsed.match, err = o.matchFlags.parse(); err != nil {
		return err
	}
	o.parsed.ports, err = parsePortFlags(o.portFlags)
	return err
}

// requests returns one request for each port, or one for the workload.
func (o *interceptOptions) requests() ([]*daemonv1.InterceptRequest, error) {
	mode := modes[o.mode]
	newRequest := func() *daemonv1.InterceptRequest {
		return &daemonv1.InterceptRequest{
			Match:          o.parsed.match,
			TtlSeconds:     int64(time.Duration(o.ttl) / time.Second),
			ErrorOnFailure: o.onFailure == onFailureError,
			Mode:           string(mode),
			Container:      o.container,
			Attach:         o.attach,
			TlsSecret:      o.tls.secret,
			LocalPlaintext: o.tls.localPlaintext,
		}
	}
	if len(o.parsed.ports) == 0 {
		r := newRequest()
		if mode == detour.ModeIngest && !o.targetsWorkload() {
			r.Service = o.parsed.target
			return []*daemonv1.InterceptRequest{r}, nil
		}
		var err error
		r.Workload, err = parseWorkload(o.parsed.target)
		return []*daemonv1.InterceptRequest{r}, err
	}
	var all []*daemonv1.InterceptRequest
	for _, p := range o.parsed.ports {
		r := newRequest()
		r.Service, r.LocalPort, r.Port, r.Protocol = o.parsed.target, p.local, p.remote, p.protocol
		all = append(all, r)
	}
	return all, nil
}

// targetsWorkload reports whether the target is written as KIND/NAME.
func (o *interceptOptions) targetsWorkload() bool { return strings.Contains(o.parsed.target, "/") }

// workloadKinds are the kinds that can be replaced, with kubectl's short names.
var workloadKinds = []struct{ kind, short string }{
	{"Deployment", "deploy"}, {"StatefulSet", "sts"}, {"DaemonSet", "ds"}, {"Rollout", "ro"},
}

// parseWorkload accepts NAME, and KIND/NAME in kubectl's spellings. It returns the kind as the API
// spells it.
func parseWorkload(s string) (string, error) {
	kind, name, ok := strings.Cut(s, "/")
	if !ok {
		return s, nil
	}
	for _, k := range workloadKinds {
		lower := strings.ToLower(k.kind)
		switch strings.ToLower(kind) {
		case lower, lower + "s", k.short:
			if name == "" {
				return "", fmt.Errorf("%s has no name after the kind: write for example %s/worker", s, kind)
			}
			return k.kind + "/" + name, explain.Name("the "+lower, name)
		}
	}
	return "", fmt.Errorf("%s cannot be replaced, because detour does not know its kind: "+
		"use deployment/NAME, statefulset/NAME, daemonset/NAME or rollout/NAME", s)
}
