package cli

import (
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// parseIntercept completes and validates a command line of `detour intercept`.
func parseIntercept(target string, flags []string) ([]*daemonv1.InterceptRequest, error) {
	o := &interceptOptions{sessionOptions: sessionOptions{globalOptions: &globalOptions{}}}
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.addFlags(f)
	if err := f.Parse(flags); err != nil {
		return nil, err
	}
	if err := o.Complete([]string{target}); err != nil {
		return nil, err
	}
	if err := o.Validate(); err != nil {
		return nil, err
	}
	return o.requests()
}

func TestInterceptFlagsBecomeRequests(t *testing.T) {
	for name, c := range map[string]struct {
		target string
		flags  []string
		want   []*daemonv1.InterceptRequest
		err    string
	}{
		"a port": {
			target: "catalog",
			flags:  []string{"--port", "8080"},
			want:   []*daemonv1.InterceptRequest{{Service: "catalog", LocalPort: 8080, Mode: "Intercept"}},
		},
		"two ports": {
			target: "catalog",
			flags:  []string{"--port", "1:http", "--port", "2:grpc", "--ttl", "2h"},
			want: []*daemonv1.InterceptRequest{
				{Service: "catalog", LocalPort: 1, Port: "http", Mode: "Intercept", TtlSeconds: 7200},
				{Service: "catalog", LocalPort: 2, Port: "grpc", Mode: "Intercept", TtlSeconds: 7200},
			},
		},
		"a wiretap": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "wiretap", "--path", "/a"},
			want: []*daemonv1.InterceptRequest{
				{Service: "catalog", LocalPort: 1, Mode: "Wiretap", Match: &agentv1.Match{Path: "/a"}},
			},
		},
		"mode ingest of a service": {
			target: "catalog",
			flags:  []string{"--mode", "ingest"},
			want:   []*daemonv1.InterceptRequest{{Service: "catalog", Mode: "Ingest"}},
		},
		"mode ingest of a workload": {
			target: "deployment/worker",
			flags:  []string{"--mode", "ingest"},
			want:   []*daemonv1.InterceptRequest{{Workload: "Deployment/worker", Mode: "Ingest"}},
		},
		"an attached agent": {
			target: "catalog",
			flags:  []string{"--port", "1", "--attach"},
			want:   []*daemonv1.InterceptRequest{{Service: "catalog", LocalPort: 1, Mode: "Intercept", Attach: true}},
		},
		"mode replace of a service": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "replace"},
			want:   []*daemonv1.InterceptRequest{{Service: "catalog", LocalPort: 1, Mode: "Replace"}},
		},
		"mode replace of a name": {
			target: "worker",
			flags:  []string{"--mode", "replace", "--container", "app"},
			want:   []*daemonv1.InterceptRequest{{Workload: "worker", Mode: "Replace", Container: "app"}},
		},
		"mode replace of a workload": {
			target: "deploy/worker",
			flags:  []string{"--mode", "replace"},
			want:   []*daemonv1.InterceptRequest{{Workload: "Deployment/worker", Mode: "Replace"}},
		},

		"mode replace that fails closed": {
			target: "worker",
			flags:  []string{"--mode", "replace", "--on-failure", "error"},
			want:   []*daemonv1.InterceptRequest{{Workload: "worker", Mode: "Replace", ErrorOnFailure: true}},
		},

		"mode ingest with a port": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "ingest"},
			err:    "--mode ingest takes no traffic",
		},
		"a duration without a unit": {
			target: "catalog",
			flags:  []string{"--port", "1", "--ttl", "2"},
			err:    `invalid argument "2" for "--ttl" flag: write whole seconds, minutes or hours, as in --ttl 2h`,
		},
		"a negative duration": {
			target: "catalog",
			flags:  []string{"--port", "1", "--ttl", "-2h"},
			err:    "write whole seconds",
		},
		"a fraction of seconds": {
			target: "catalog",
			flags:  []string{"--port", "1", "--ttl", "1.5s"},
			err:    "write whole seconds",
		},
		"a header in the form of curl": {
			target: "catalog",
			flags:  []string{"--port", "1", "--header", "x-dev: alice"},
			err:    `--header "x-dev: alice": write NAME=VALUE, NAME~=REGEX or NAME, as in --header x-dev=alice`,
		},
		"an invalid regular expression": {
			target: "catalog",
			flags:  []string{"--port", "1", "--header", "x-dev~=("},
			err:    `the header x-dev has "(", which is not a valid regular expression: missing closing )`,
		},
		"a regular expression that closes a group of detour's": {
			target: "catalog",
			flags:  []string{"--port", "1", "--header", "x-dev~=a)|(b"},
			err:    "is not a valid regular expression: unexpected )",
		},
		"no port": {target: "catalog", err: "--port is missing"},
		"an unknown mode": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "steal"},
			err:    "--mode steal does not exist",
		},
		"the traffic of a workload": {
			target: "deployment/worker",
			flags:  []string{"--port", "1"},
			err:    "is not a service",
		},
		"a workload with a port": {
			target: "deployment/worker",
			flags:  []string{"--port", "1", "--mode", "replace"},
			err:    "--port names a port of a service",
		},
		"an unknown kind": {
			target: "job/worker",
			flags:  []string{"--mode", "replace"},
			err:    "cannot be replaced, because detour does not know its kind",
		},
		"a kind without a name": {
			target: "deployment/",
			flags:  []string{"--mode", "replace"},
			err:    "no name after the kind",
		},
		"a container in the usual mode": {
			target: "catalog",
			flags:  []string{"--port", "1", "--container", "app"},
			err:    "--container works only with --mode replace and --mode ingest: use one of them, or omit it",
		},
		"mode replace with an attached agent": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "replace", "--attach"},
			err:    "--attach restarts no pod",
		},
		"mode replace with conditions": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "replace", "--path", "/a"},
			err:    "takes all requests",
		},
		"mode replace with a fallback": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "replace", "--on-failure", "fallback"},
			err:    "--on-failure",
		},
		"a wiretap that fails closed": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "wiretap", "--on-failure", "error"},
			err:    "--on-failure",
		},
		"mode ingest that fails closed": {
			target: "catalog",
			flags:  []string{"--mode", "ingest", "--on-failure", "error"},
			err:    "--on-failure",
		},
		"local plaintext without TLS": {
			target: "catalog",
			flags:  []string{"--mode", "ingest", "--local-plaintext"},
			err: "--local-plaintext works only with --tls-secret: without it the agent does not decrypt TLS; add " +
				"--tls-secret, or omit --local-plaintext",
		},
		"an empty Secret": {
			target: "catalog",
			flags:  []string{"--port", "1", "--me", "--tls-secret", ""},
			err:    "--tls-secret is empty",
		},
		"an empty container": {
			target: "worker",
			flags:  []string{"--mode", "replace", "--container", ""},
			err:    "--container is empty",
		},
		"an empty mode": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", ""},
			err:    "--mode is empty: give it a value, or omit it",
		},
		"an empty file": {
			target: "catalog",
			flags:  []string{"--mode", "ingest", "--env-file", ""},
			err:    "--env-file is empty: give it a value, or omit it",
		},
		"an empty JSON file": {
			target: "catalog",
			flags:  []string{"--mode", "ingest", "--env-json", ""},
			err:    "--env-json is empty: give it a value, or omit it",
		},
		"an invalid name of a service": {
			target: "Bad Name",
			flags:  []string{"--port", "1"},
			err:    `the service "Bad Name" is not a valid name in Kubernetes`,
		},
		"a name with a line break": {
			target: "a\nb",
			flags:  []string{"--port", "1"},
			err:    `the service "a\nb" is not a valid name in Kubernetes`,
		},
		"an invalid name of a workload": {
			target: "deployment/a/b",
			flags:  []string{"--mode", "replace"},
			err:    `the deployment "a/b" is not a valid name in Kubernetes`,
		},
		"an empty port": {target: "catalog", flags: []string{"--port", ""}, err: "--port"},
		"no service": {
			target: "",
			flags:  []string{"--port", "1"},
			err:    "the name of the service is empty",
		},
		"TLS in mode replace": {
			target: "catalog",
			flags:  []string{"--port", "1", "--mode", "replace", "--tls-secret", "x"},
			err:    "add a condition such as --me, or omit it",
		},
		"a port twice": {
			target: "catalog",
			flags:  []string{"--port", "8080:http", "--port", "8081:http"},
			err:    "--port 8081:http: the service's port http is given twice",
		},
		"a port in two ranges": {
			target: "catalog",
			flags:  []string{"--port", "9000-9002", "--port", "8002:9002"},
			err:    "--port 8002:9002: the service's port 9002 is given twice",
		},
		"both protocols of a port": {
			target: "dns",
			flags:  []string{"--port", "5353:53/udp", "--port", "5353:53/tcp"},
			want: []*daemonv1.InterceptRequest{
				{Service: "dns", LocalPort: 5353, Port: "53", Protocol: "UDP", Mode: "Intercept"},
				{Service: "dns", LocalPort: 5353, Port: "53", Protocol: "TCP", Mode: "Intercept"},
			},
		},
		"several ports without the service's port": {
			target: "catalog",
			flags:  []string{"--port", "1", "--port", "2:http"},
			err:    "with several ports, name the service's port in each",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseIntercept(c.target, c.flags)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Len(t, got, len(c.want))
			for i := range got {
				assert.True(t, proto.Equal(c.want[i], got[i]), "%v", got[i])
			}
		})
	}
}
