package cli

import (
	"errors"
	"fmt"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
)

// modes are the values of --mode.
var modes = map[string]detour.Mode{
	"intercept": detour.ModeIntercept,
	"wiretap":   detour.ModeWiretap,
	"replace":   detour.ModeReplace,
	"ingest":    detour.ModeIngest,
}

// rule is a mistake in a combination of flags and arguments.
type rule struct {
	broken  bool
	message string
}

// check returns the message of the first broken rule.
func check(rules []rule) error {
	for _, r := range rules {
		if r.broken {
			return errors.New(r.message)
		}
	}
	return nil
}

// Validate implements commandOptions. It checks in a fixed order, so that a command line with
// several mistakes always reports the same one.
func (o *interceptOptions) Validate() error {
	if err := o.printFlags.Validate(); err != nil {
		return err
	}
	if err := o.checkNotEmpty(); err != nil {
		return err
	}
	if err := o.checkValues(); err != nil {
		return err
	}
	for _, rules := range [][]rule{o.modeRules(), o.attachRules(), o.targetRules(), o.tlsRules()} {
		if err := check(rules); err != nil {
			return err
		}
	}
	if !o.targetsWorkload() {
		if err := explain.Name("the service", o.parsed.target); err != nil {
			return err
		}
	}
	if _, err := o.requests(); err != nil {
		return err
	}
	return o.sessionOptions.validate()
}

// checkNotEmpty refuses flags that are set to an empty value, as an unset variable of the shell
// does.
func (o *interceptOptions) checkNotEmpty() error {
	for _, f := range []struct{ flag, value string }{
		{"mode", o.mode},
		{"on-failure", o.onFailure},
		{"container", o.container},
		{"tls-secret", o.tls.secret},
		{"env-file", o.environmentFlags.file},
		{"env-json", o.environmentFlags.jsonFile},
	} {
		if f.value == "" && o.changed(f.flag) {
			return fmt.Errorf("--%s is empty: give it a value, or omit it", f.flag)
		}
	}
	return nil
}

// checkValues refuses values that do not exist.
func (o *interceptOptions) checkValues() error {
	if o.onFailure != onFailureFallback && o.onFailure != onFailureError {
		return fmt.Errorf("--on-failure %s does not exist: use fallback (the cluster's pods answer) or error",
			o.onFailure)
	}
	if _, ok := modes[o.mode]; !ok {
		return fmt.Errorf("--mode %s does not exist: use intercept, wiretap (copies of the requests; the cluster's "+
			"pods answer), "+
			"replace (the app's container does not run) or ingest (only the app's environment)", o.mode)
	}
	if o.parsed.target == "" {
		return errors.New("the name of the service is empty: name the service to intercept, as in `detour intercept " +
			"catalog --port 8080`")
	}
	return nil
}

func (o *interceptOptions) is(mode detour.Mode) bool { return modes[o.mode] == mode }

// needsNoPort reports whether the mode can do without a port.
func (o *interceptOptions) needsNoPort() bool {
	return o.is(detour.ModeReplace) || o.is(detour.ModeIngest)
}

// modeRules are about --mode.
func (o *interceptOptions) modeRules() []rule {
	replace, ingest := o.is(detour.ModeReplace), o.is(detour.ModeIngest)
	conditions := o.parsed.match != nil
	return []rule{
		{
			broken: replace && conditions,
			message: "--mode replace takes all requests, because the app does not run: omit the conditions, or use " +
				"--mode intercept",
		},
		{
			broken: replace && o.changed("on-failure") && o.onFailure == onFailureFallback,
			message: "--on-failure fallback: with --mode replace the app does not run, so nothing can answer for " +
				"this laptop: omit it, or use --mode intercept",
		},
		{
			broken:  o.is(detour.ModeWiretap) && o.onFailure == onFailureError,
			message: "--on-failure error: with --mode wiretap the cluster's pods answer in any case: omit it",
		},
		{
			broken:  ingest && o.changed("on-failure"),
			message: "--on-failure: --mode ingest takes no traffic: omit it",
		},
		{
			broken:  o.container != "" && !o.needsNoPort(),
			message: "--container works only with --mode replace and --mode ingest: use one of them, or omit it",
		},
	}
}

// attachRules are about --attach, and about what else --mode ingest excludes.
func (o *interceptOptions) attachRules() []rule {
	ingest := o.is(detour.ModeIngest)
	traffic := len(o.portFlags) > 0 || o.parsed.match != nil || o.tls.secret != ""
	return []rule{
		{
			broken:  o.attach && o.is(detour.ModeReplace),
			message: "--attach restarts no pod, and --mode replace needs new pods: use one of them",
		},
		{
			broken:  o.attach && ingest,
			message: "--mode ingest restarts no pod and needs no agent: omit --attach",
		},
		{
			broken: o.attach && o.tls.secret != "",
			message: "--attach restarts no pod, and a running pod cannot get the volume of --tls-secret: use one of " +
				"them",
		},
		{
			broken:  ingest && traffic,
			message: "--mode ingest takes no traffic: omit ports, conditions and --tls-secret, or use --mode intercept",
		},
	}
}

// targetRules are about a workload in place of a service.
func (o *interceptOptions) targetRules() []rule {
	workload, target := o.targetsWorkload(), o.parsed.target
	return []rule{
		{
			broken: workload && !o.needsNoPort(),
			message: target + " is not a service: name the service whose traffic you want, or use --mode replace or " +
				"ingest",
		},
		{workload && len(o.portFlags) > 0, "--port names a port of a service: name the service in place of " + target +
			", or omit --port"},
	}
}

// tlsRules are about the flags for TLS, and about a missing port.
func (o *interceptOptions) tlsRules() []rule {
	allRequests := o.parsed.match == nil && !o.is(detour.ModeWiretap)
	return []rule{
		{
			broken: o.tls.secret != "" && allRequests,
			message: "--tls-secret serves to tell requests apart, and without conditions all traffic of the port " +
				"goes to this laptop as it is, TLS included: add a condition such as --me, or omit it",
		},
		{
			broken: o.tls.localPlaintext && o.tls.secret == "",
			message: "--local-plaintext works only with --tls-secret: without it the agent does not decrypt TLS; " +
				"add --tls-secret, or omit --local-plaintext",
		},
		{
			broken:  len(o.portFlags) == 0 && !o.needsNoPort(),
			message: "--port is missing: name the port on which this laptop listens, as in --port 8080",
		},
	}
}
