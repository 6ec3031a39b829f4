package cli

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericiooptions"
	"sigs.k8s.io/yaml"

	"github.com/detour-dev/detour/pkg/inject"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// printed returns what a command prints in a format.
func printed(t *testing.T, format string, value any, text func(io.Writer)) []byte {
	var out bytes.Buffer
	p := &printFlags{out: &out, format: format}
	require.NoError(t, p.Validate())
	require.NoError(t, p.Print(value, text))
	return out.Bytes()
}

// connected returns the status of a session without intercepts.
func connected() *daemonv1.StatusResponse {
	return &daemonv1.StatusResponse{
		Connected: true, TunnelUp: true, Context: "staging", Server: "https://k8s.example:6443", Namespace: "shop",
		Session: "eve-thinkpad", User: "eve", Host: "thinkpad", Addresses: []string{"100.64.0.2", "fd00::2"},
		Subnets:   []string{"10.42.0.0/24", "10.96.0.0/16"},
		Interface: "detour0", Transport: "api-server-upgrade", TransportSinceUnix: 1800000003,
		DnsServers: []string{"10.96.0.10"}, ClusterDomain: "cluster.local",
		ClientVersion: "v0.1.0", ManagerVersion: "v0.1.1", SinceUnix: 1800000000, RttSeconds: 0.0123456,
	}
}

func TestStatusInEachFormat(t *testing.T) {
	intercepting := connected()
	intercepting.Intercepts = []*daemonv1.Intercept{
		{
			Name:          "catalog-8080",
			Namespace:     "shop",
			Service:       "catalog",
			Port:          "http",
			LocalPort:     8080,
			Workload:      "deployment/catalog",
			Phase:         "Active",
			Agents:        "2/2",
			Redirect:      inject.ViaNftables,
			Message:       "deployment/catalog sends its traffic to eve@thinkpad",
			ContainerPort: 8080,
		},
		{
			Name:      "db-5432",
			Namespace: "shop",
			Service:   "db",
			LocalPort: 15432,
			Workload:  "statefulset/db",
			Phase:     "Pending",
			Agents:    "0/1",
			Mode:      "Wiretap",
			Dropped:   12,
		},
		{
			Name:      "worker-x",
			Namespace: "shop",
			Workload:  "deployment/worker",
			Phase:     "Active",
			Agents:    "2/2",
			Mode:      "Replace",
			Container: "app",
		},
		{
			Name:      "stock-x",
			Namespace: "shop",
			Service:   "stock",
			LocalPort: 8081,
			Workload:  "deployment/stock",
			Phase:     "Refused",
			Message:   "port 8080 of deployment/stock is intercepted by mallory@x1",
		},
		{
			Service:   "web",
			LocalPort: 8082,
			Phase:     "Wanted",
			Message:   "the API server could not answer (busy): try again",
		},
		{Workload: "deployment/mailer", Phase: "Wanted", Mode: "Replace"},
	}
	down := connected()
	down.TunnelUp, down.Problem = false, "the traffic-manager fell silent"
	direct := connected()
	direct.Transport, direct.TransportAddress, direct.RttSeconds = "direct-udp", "203.0.113.7:30777", 0.000456
	unmeasured := connected()
	unmeasured.RttSeconds = 0
	for name, s := range map[string]*daemonv1.StatusResponse{
		"status-not-connected": {ClientVersion: "v0.1.0"},
		"status-connected":     connected(),
		"status-unmeasured":    unmeasured,
		"status-direct":        direct,
		"status-tunnel-down":   down,
		"status-intercepting":  intercepting,
	} {
		for _, output := range []string{"", "json", "yaml"} {
			t.Run(name+" "+output, func(t *testing.T) {
				golden(t, name+suffix(output), printed(t, output, s, func(w io.Writer) { printStatus(w, s) }))
			})
		}
	}
}

func TestListInEachFormat(t *testing.T) {
	since := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, rows := range map[string][]listRow{
		"list": {
			{
				Service:  "catalog",
				Port:     "80/http",
				Workload: "deployment/catalog",
				Redirect: inject.ViaTargetPort,
				Intercepts: []listIntercept{
					{
						Name:     "catalog-1",
						Laptop:   "eve@thinkpad",
						Phase:    "Active",
						Mode:     "intercept",
						Requests: "header x-dev=eve",
						Agents:   "3/3",
						Since:    since,
					},
					{
						Name:     "catalog-2",
						Laptop:   "bob@mac",
						Phase:    "LaptopGone",
						Mode:     "wiretap",
						Requests: "copies of all requests",
						Agents:   "3/3",
						Since:    since,
					},
				},
			},
			{Service: "catalog", Port: "9090/grpc", Workload: "deployment/catalog", Redirect: inject.ViaNftables},
			{Service: "legacy", Port: "8080", Why: "no workload matches its selector"},
			{
				Service:  "paused",
				Port:     "80",
				Workload: "deployment/paused",
				Why:      "deployment/paused is paused: resume it",
				Only:     "--attach",
				Redirect: inject.ViaAttach,
			},
			{Workload: "deployment/worker", Why: "no service selects it", Only: "--mode replace"},
		},
		"list-empty": {},
	} {
		for _, output := range []string{"", "json", "yaml"} {
			t.Run(name+" "+output, func(t *testing.T) {
				golden(t, name+suffix(output), printed(t, output, rows, func(w io.Writer) { printList(w, rows) }))
			})
		}
	}
}

func suffix(output string) string {
	if output == "" {
		return ".txt"
	}
	return "." + output
}

// Scripts get the same facts, whichever format they read.
func TestYAMLAndJSONHaveTheSameContent(t *testing.T) {
	s := connected()
	asJSON, err := yaml.YAMLToJSON(printed(t, "yaml", s, nil))
	require.NoError(t, err)
	assert.JSONEq(t, string(printed(t, "json", s, nil)), string(asJSON))
}

func TestOutputFormats(t *testing.T) {
	for _, format := range []string{"", "json", "yaml"} {
		require.NoError(t, (&printFlags{format: format}).Validate())
	}
	for _, format := range []string{"xml", "JSON", "wide"} {
		err := (&printFlags{format: format}).Validate()
		require.EqualError(t, err, "-o "+format+" is not an output format: use json or yaml")
	}
}

// The file in testdata has the help of each command without kubectl's flags.
func TestHelpOfEachCommand(t *testing.T) {
	var out bytes.Buffer
	root := Command(genericiooptions.IOStreams{In: &bytes.Buffer{}, Out: io.Discard, ErrOut: io.Discard})
	fmt.Fprintf(&out, "%s\n", root.Long)
	for _, cmd := range root.Commands() {
		if cmd.Hidden || cmd.Name() == "help" || cmd.Name() == "completion" { // cobra's own commands
			continue
		}
		if f := cmd.Flags().Lookup("rootless"); f != nil {
			f.DefValue = "false" // it depends on who runs this test
		}
		fmt.Fprintf(&out, "\n== detour %s\n%s\n%s\n%s\n%s", cmd.Use, cmd.Short, cmd.Long, cmd.Example,
			cmd.LocalNonPersistentFlags().FlagUsages())
	}
	golden(t, "help.txt", out.Bytes())
}
