package cli

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
	tailv1 "github.com/detour-dev/detour/rpc/tail/v1"
)

var update = flag.Bool("update", false, "write the files in testdata, and docs/reference/commands.md")

// golden compares got with a file in testdata. Users and scripts read this output, so a change of
// it is a change for them.
func golden(t *testing.T, name string, got []byte) {
	path := filepath.Join("testdata", name+".golden")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, got, 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run the test with -update")
	assert.Equal(t, string(want), string(got))
}

// TestMain makes the tests independent of the machine's time zone. It does so before any test runs,
// because goroutines of gRPC read the time.
func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// The files in testdata show a whole session as the user sees it: each command line, its standard
// output, its standard error after "! ", and its exit code.
func TestWhatTheCommandsPrint(t *testing.T) {
	at := timestamppb.New(time.Date(2030, 1, 2, 3, 4, 5, 6e6, time.UTC))
	targets := []*daemonv1.Target{
		{
			Service: "catalog", Port: "80/http", Workload: "deployment/catalog", Redirect: "targetPort",
			Intercepts: []*daemonv1.TargetIntercept{{
				Name: "catalog-1", Laptop: "eve@thinkpad", Phase: "Active", Mode: "intercept", Requests: "all requests",
				Agents: "2/2", SinceUnix: 1800000000,
			}},
		},
		{Workload: "deployment/worker", WhyNot: "no service selects it", Only: "--mode replace"},
	}
	tail := []*tailv1.TailResponse{
		{Note: "following 2 pods"},
		{Requests: []*tailv1.Request{{
			At: at, Duration: durationpb.New(time.Millisecond), Pod: "catalog-1", Port: 8080, Method: "GET",
			Path:   "/items",
			Status: 200, ServedBy: tailv1.ServedBy_SERVED_BY_LAPTOP, Laptop: "eve@thinkpad", Why: "all requests",
		}}},
		{Missed: 3},
	}
	for name, c := range map[string]struct {
		daemon *fakeDaemon // nil: no daemon runs
		lines  []string
	}{
		"without-daemon": {lines: []string{
			"status", "status -o json", "quit", "quit -o yaml", "leave catalog", "version",
		}},
		"connected": {
			daemon: &fakeDaemon{status: connected(), targets: targets, tail: tail},
			lines: []string{
				"connect", "list", "list -o json", "list -o yaml", "tail catalog", "tail catalog -o json",
				"tail catalog -o yaml",
				"version", "version -o json",
			},
		},
		"other-session": {
			daemon: &fakeDaemon{status: connected()},
			lines:  []string{"intercept catalog --port 8080 -n other", "tail catalog --context production"},
		},
		"intercept": {
			daemon: &fakeDaemon{status: connected()},
			lines: []string{
				"intercept catalog --port 8080",
				"intercept catalog --port 8080 -o json",
				"intercept catalog --port 8080:http --port 9090:grpc -o yaml",
				"intercept catalog --port 8080 --header x-dev=alice --path-prefix /api",
				"intercept catalog --port 8080 --mode wiretap",
				"intercept deployment/worker --mode replace",
				"intercept catalog --mode ingest",
				"intercept catalog --port 8443 --header x-dev=alice --tls-secret web-tls",
				"leave catalog",
				"leave catalog -o json",
			},
		},
		"refused": {
			daemon: &fakeDaemon{
				status: connected(),
				refuse: "port 8080 of deployment/catalog is intercepted by mallory@x1",
			},
			lines: []string{"intercept catalog --port 8080", "intercept catalog --port 8080 -o json", "leave catalog"},
		},
		"quit": {
			daemon: &fakeDaemon{quit: &daemonv1.QuitResponse{WasConnected: true}},
			lines:  []string{"quit"},
		},
		"quit-offline": {
			daemon: &fakeDaemon{quit: &daemonv1.QuitResponse{WasConnected: true, NotDeleted: "the cluster cannot be " +
				"reached"}},
			lines: []string{"quit"},
		},
		"environment-forbidden": {
			daemon: &fakeDaemon{status: connected()},
			lines: []string{
				"intercept catalog --mode ingest --env-file /nonexistent/env",
				"intercept catalog --mode ingest -- true",
			},
		},
		"environment": {
			daemon: &fakeDaemon{status: connected(), environment: &daemonv1.EnvironmentResponse{
				Variables: map[string][]byte{"COLOUR": []byte("blue"), "A;id": []byte("x")},
				Missing:   []string{"secret keys (you may not read it)"},
			}},
			lines: []string{
				"intercept catalog --mode ingest --env-file /nonexistent/env",
				"intercept catalog --mode ingest -- printenv COLOUR",
				"intercept catalog --mode ingest --env=false -- printenv COLOUR",
			},
		},
		"run": {
			daemon: &fakeDaemon{status: connected()},
			lines:  []string{"run -- true", "run -- false", "run -- /nonexistent/command", "run -- /dev/null", "run"},
		},
		"mistakes": {lines: []string{
			"frobnicate", "statsu", "status catalog", "leave", "status -o xml", "intercept catalog",
			"intercept catalog --port http",
			"intercept catalog --port 8080 --mode steal", "intercept catalog --port 8080 --ttl 2",
			"intercept deployment/worker --port 8080", "intercept catalog --port 8080 --", "connect --rootless=maybe",
			"connect --transport pigeon", "tail Bad", "install --timeout -1s", "install --set foo",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			paths := testPaths(t)
			if c.daemon != nil {
				c.daemon.start(t, paths)
			}
			var transcript strings.Builder
			for _, line := range c.lines {
				r := execute(t, strings.Fields(line)...)
				fmt.Fprintf(&transcript, "$ detour %s\n%s", line, r.stdout)
				for text := range strings.Lines(r.stderr) {
					transcript.WriteString("! " + text)
				}
				fmt.Fprintf(&transcript, "exit code %d\n\n", r.exitCode)
			}
			golden(t, "session-"+name+".txt", []byte(transcript.String()))
			if c.daemon == nil {
				require.NoFileExists(t, paths.Socket(), "no command has started a daemon")
			}
		})
	}
}
