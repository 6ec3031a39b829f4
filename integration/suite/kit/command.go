package kit

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// ManagerImage is the image of the traffic-manager under test. integration/run.sh loads it into the
// cluster.
const ManagerImage = "detour.local/traffic:dev"

// commandLimit ends a command that hangs. It is longer than any wait of detour's own.
const commandLimit = 10 * time.Minute

// Path returns the path of a file of the repository.
func Path(parts ...string) string {
	return filepath.Join(append([]string{os.Getenv("DETOUR_ROOT")}, parts...)...)
}

// Testdata returns the path of a manifest of the suite.
func Testdata(name string) string { return Path("integration", "suite", "testdata", name) }

// Run runs a program to its end and returns all that it printed. It interrupts a program that
// hangs, as a person would: the program then says what it waits for, and leaves nothing behind that
// would disturb other tests.
func Run(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 30 * time.Second
	err := cmd.Run()
	return strings.TrimSpace(out.String()), err
}

// Detour runs detour on this machine, requires that it succeeds, and returns what it printed.
func Detour(t *testing.T, args ...string) string {
	t.Helper()
	out, err := Run("detour", args...)
	require.NoError(t, err, "detour %s: %s", strings.Join(args, " "), out)
	return out
}

// DetourFails runs detour on this machine, requires that it fails with one sentence for people, and
// returns that sentence.
func DetourFails(t *testing.T, args ...string) string {
	t.Helper()
	out, err := Run("detour", args...)
	require.Error(t, err, out)
	lines := strings.Split(out, "\n")
	last := lines[len(lines)-1]
	require.True(t, strings.HasPrefix(last, "detour: "), out)
	require.NotContains(t, strings.TrimPrefix(last, "detour: "), "rpc error", out)
	return last
}

// Kubectl runs kubectl as the cluster's administrator, requires that it succeeds, and returns what
// it printed.
func Kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := Run("kubectl", args...)
	require.NoError(t, err, "kubectl %s: %s", strings.Join(args, " "), out)
	return out
}

// Curl returns a page. Unlike this process, which rereads /etc/resolv.conf every 5 s, curl always
// knows the current resolver.
func Curl(t *testing.T, url string) string {
	t.Helper()
	out, err := exec.Command("curl", "-sS", "--max-time", "10", url).CombinedOutput()
	require.NoError(t, err, "%s: %s", url, out)
	return string(out)
}

// Query returns what a JSON path finds in objects of a namespace. objects are words of `kubectl
// get`, such as "pods -l app=web".
func Query(t *testing.T, namespace, objects, path string) string {
	t.Helper()
	args := append([]string{"-n", namespace, "get"}, strings.Fields(objects)...)
	return Kubectl(t, append(args, "-o", "jsonpath="+path)...)
}
