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

func TestWish(t *testing.T) {
	for name, c := range map[string]struct {
		target string
		flags  []string
		want   []*daemonv1.InterceptRequest
		err    string
	}{
		"a port": {"catalog", []string{"--port", "8080"}, []*daemonv1.InterceptRequest{{Service: "catalog", LocalPort: 8080, Mode: "Intercept"}}, ""},
		"two ports": {"catalog", []string{"--port", "1:http", "--port", "2:grpc", "--ttl", "2h"}, []*daemonv1.InterceptRequest{
			{Service: "catalog", LocalPort: 1, Port: "http", Mode: "Intercept", TtlSeconds: 7200}, {Service: "catalog", LocalPort: 2, Port: "grpc", Mode: "Intercept", TtlSeconds: 7200},
		}, ""},
		"a wiretap":           {"catalog", []string{"--port", "1", "--mode", "wiretap", "--path", "/a"}, []*daemonv1.InterceptRequest{{Service: "catalog", LocalPort: 1, Mode: "Wiretap", Match: &agentv1.Match{Path: "/a"}}}, ""},
		"ingested":            {"catalog", []string{"--mode", "ingest"}, []*daemonv1.InterceptRequest{{Service: "catalog", Mode: "Ingest"}}, ""},
		"an ingested worker":  {"deployment/worker", []string{"--mode", "ingest"}, []*daemonv1.InterceptRequest{{Workload: "Deployment/worker", Mode: "Ingest"}}, ""},
		"attached":            {"catalog", []string{"--port", "1", "--attach"}, []*daemonv1.InterceptRequest{{Service: "catalog", LocalPort: 1, Mode: "Intercept", Attach: true}}, ""},
		"a replaced service":  {"catalog", []string{"--port", "1", "--mode", "replace"}, []*daemonv1.InterceptRequest{{Service: "catalog", LocalPort: 1, Mode: "Replace"}}, ""},
		"a replaced name":     {"worker", []string{"--mode", "replace", "--container", "app"}, []*daemonv1.InterceptRequest{{Workload: "worker", Mode: "Replace", Container: "app"}}, ""},
		"a replaced workload": {"deploy/worker", []string{"--mode", "replace"}, []*daemonv1.InterceptRequest{{Workload: "Deployment/worker", Mode: "Replace"}}, ""},

		"a replaced one's error": {"worker", []string{"--mode", "replace", "--on-failure", "error"}, []*daemonv1.InterceptRequest{{Workload: "worker", Mode: "Replace", ErrorOnFailure: true}}, ""},

		"ingested with a port":        {"catalog", []string{"--port", "1", "--mode", "ingest"}, nil, "--mode ingest takes no traffic"},
		"a time without a unit":       {"catalog", []string{"--port", "1", "--ttl", "2"}, nil, `invalid argument "2" for "--ttl" flag: write whole seconds, minutes or hours, as in --ttl 2h`},
		"a time that is past":         {"catalog", []string{"--port", "1", "--ttl", "-2h"}, nil, "write whole seconds"},
		"a fraction of seconds":       {"catalog", []string{"--port", "1", "--ttl", "1.5s"}, nil, "write whole seconds"},
		"a header as curl's":          {"catalog", []string{"--port", "1", "--header", "x-dev: alice"}, nil, `--header "x-dev: alice": write NAME=VALUE, NAME~=REGEX or NAME, as in --header x-dev=alice`},
		"a broken expression":         {"catalog", []string{"--port", "1", "--header", "x-dev~=("}, nil, `the header x-dev has "(", which is no regular expression: missing closing )`},
		"one that breaks out":         {"catalog", []string{"--port", "1", "--header", "x-dev~=a)|(b"}, nil, "is no regular expression: unexpected )"},
		"no port":                     {"catalog", nil, nil, "--port is missing"},
		"an unknown mode":             {"catalog", []string{"--port", "1", "--mode", "steal"}, nil, "--mode steal is not known"},
		"a workload's traffic":        {"deployment/worker", []string{"--port", "1"}, nil, "is not a service"},
		"a workload with a port":      {"deployment/worker", []string{"--port", "1", "--mode", "replace"}, nil, "--port is of a service"},
		"an unknown kind":             {"job/worker", []string{"--mode", "replace"}, nil, "of no kind that can be replaced"},
		"a kind without a name":       {"deployment/", []string{"--mode", "replace"}, nil, "no name after the kind"},
		"a container and no reason":   {"catalog", []string{"--port", "1", "--container", "app"}, nil, "--container is for --mode replace and --mode ingest: use one of them, or leave it out"},
		"attached and replaced":       {"catalog", []string{"--port", "1", "--mode", "replace", "--attach"}, nil, "--attach restarts no pod"},
		"conditions of a replaced":    {"catalog", []string{"--port", "1", "--mode", "replace", "--path", "/a"}, nil, "takes everything"},
		"a replaced one's fallback":   {"catalog", []string{"--port", "1", "--mode", "replace", "--on-failure", "fallback"}, nil, "--on-failure"},
		"a wiretap's error":           {"catalog", []string{"--port", "1", "--mode", "wiretap", "--on-failure", "error"}, nil, "--on-failure"},
		"an ingested one's error":     {"catalog", []string{"--mode", "ingest", "--on-failure", "error"}, nil, "--on-failure"},
		"an ingested one's plaintext": {"catalog", []string{"--mode", "ingest", "--local-plaintext"}, nil, "--local-plaintext is for --tls-secret: without it nobody looks into TLS: add it, or leave this out"},
		"an empty Secret":             {"catalog", []string{"--port", "1", "--me", "--tls-secret", ""}, nil, "--tls-secret is empty"},
		"an empty container":          {"worker", []string{"--mode", "replace", "--container", ""}, nil, "--container is empty"},
		"an empty mode":               {"catalog", []string{"--port", "1", "--mode", ""}, nil, "--mode is empty: give it a value, or leave it out"},
		"an empty file":               {"catalog", []string{"--mode", "ingest", "--env-file", ""}, nil, "--env-file is empty: give it a value, or leave it out"},
		"an empty JSON file":          {"catalog", []string{"--mode", "ingest", "--env-json", ""}, nil, "--env-json is empty: give it a value, or leave it out"},
		"no name of a service":        {"Bad Name", []string{"--port", "1"}, nil, `the service "Bad Name" is no name in Kubernetes`},
		"two lines":                   {"a\nb", []string{"--port", "1"}, nil, `the service "a\nb" is no name in Kubernetes`},
		"no name of a workload":       {"deployment/a/b", []string{"--mode", "replace"}, nil, `the deployment "a/b" is no name in Kubernetes`},
		"an empty port":               {"catalog", []string{"--port", ""}, nil, "--port"},
		"no service":                  {"", []string{"--port", "1"}, nil, "the name of the service is empty"},
		"TLS of what is replaced":     {"catalog", []string{"--port", "1", "--mode", "replace", "--tls-secret", "x"}, nil, "add a condition such as --me, or leave it out"},
		"a port twice":                {"catalog", []string{"--port", "8080:http", "--port", "8081:http"}, nil, "--port 8081:http: the service's port http is given twice"},
		"a port in two ranges":        {"catalog", []string{"--port", "9000-9002", "--port", "8002:9002"}, nil, "--port 8002:9002: the service's port 9002 is given twice"},
		"both protocols of a port":    {"dns", []string{"--port", "5353:53/udp", "--port", "5353:53/tcp"}, []*daemonv1.InterceptRequest{{Service: "dns", LocalPort: 5353, Port: "53", Protocol: "UDP", Mode: "Intercept"}, {Service: "dns", LocalPort: 5353, Port: "53", Protocol: "TCP", Mode: "Intercept"}}, ""},
		"ports that are not clear":    {"catalog", []string{"--port", "1", "--port", "2:http"}, nil, "with several ports say for each"},
	} {
		t.Run(name, func(t *testing.T) {
			var w wish
			f := pflag.NewFlagSet("", pflag.ContinueOnError)
			w.add(f)
			err := f.Parse(c.flags)
			var got []*daemonv1.InterceptRequest
			if err == nil {
				got, err = w.requests(c.target)
			}
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
