package cli

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericiooptions"
)

// mistaken runs a command that is to fail before it reaches a cluster or starts a daemon, and
// returns why.
func mistaken(t *testing.T, args ...string) string {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DETOUR_RUN_DIR", filepath.Join(home, "run"))
	t.Setenv("DETOUR_STATE_DIR", filepath.Join(home, "state"))
	root := Command(genericiooptions.NewTestIOStreamsDiscard())
	root.SetArgs(args)
	err := root.Execute()
	require.Error(t, err)
	require.NoDirExists(t, filepath.Join(home, "run"), "no daemon")
	require.NotContains(t, err.Error(), "\n")
	return err.Error()
}

// All commands that need a cluster say the same of a kubeconfig that leads to none.
func TestOneSentenceForAWrongKubeconfig(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nonexistent")
	for _, command := range []string{"list", "install", "uninstall", "connect", "run -- ls", "tail catalog", "intercept catalog --port 8080"} {
		require.Equal(t, "KUBECONFIG names /nonexistent, but no such file exists: set it to an existing file, or "+
			"use --kubeconfig", mistaken(t, strings.Fields(command)...), command)
		require.Equal(t, `context "nope" does not exist in the kubeconfig: `+"`kubectl config get-contexts` lists "+
			"what there is", mistaken(t, append([]string{"--context", "nope"}, strings.Fields(command)...)...), command)
	}
}

// Any web server answers 404 where an API server lists services.
func TestNotKubernetes(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	t.Setenv("KUBECONFIG", os.DevNull)
	for _, command := range []string{"list", "uninstall", "install"} {
		require.Equal(t, "the server at "+server.URL+" is not a Kubernetes API server: check the server in your "+
			"kubeconfig, and any proxy on the way to it", mistaken(t, command, "--server", server.URL), command)
	}
}

func TestMistakes(t *testing.T) {
	t.Setenv("KUBECONFIG", os.DevNull)
	for said, line := range map[string]string{
		"there is no command \"frobnicate\": see `detour --help`":                      "frobnicate",
		"there is no command \"statsu\": did you mean `detour status`?":                "statsu",
		"there is no command \"klingon\": see `detour completion --help`":              "completion klingon",
		"--me must be true or false, not \"maybe\": see `detour intercept --help`":     "intercept a --port 8080 --me=maybe",
		"--rootless must be true or false, not \"maybe\": see `detour connect --help`": "connect --rootless=maybe",
		"--manager-namespace is empty: write a name such as my-app":                    "connect --manager-namespace=",
		`--manager-namespace "Bad" is not a valid name in Kubernetes: use only lowercase letters, digits, - and ., ` +
			`as in my-app`: "install --manager-namespace Bad",
		`the service "Bad" is not a valid name in Kubernetes: use only lowercase letters, digits, - and ., as in ` +
			`my-app`: "tail Bad",
		"--port is empty: name one of the service's ports, or omit --port to see all of them":         "tail catalog --port=",
		"--path and --path-prefix exclude each other: omit one of them":                               "intercept a --port 8080 --path /a --path-prefix /b",
		`--path "api" does not begin with /: write for example --path /api`:                           "intercept a --port 8080 --path api",
		"unknown command \"x\" for \"detour completion bash\": usage: `detour completion bash`":       "completion bash x",
		"--timeout \"abc\" is not a valid duration (for example 5m0s): see `detour uninstall --help`": "uninstall --timeout abc",
		"the name is empty: name the service or workload to leave; `detour status` lists them":        "leave ''",
	} {
		args := strings.Fields(line)
		if last := len(args) - 1; args[last] == "''" {
			args[last] = ""
		}
		require.Equal(t, said, mistaken(t, args...), line)
	}
	require.Equal(t, "there is no command \"frobnicate\": see `detour --help`", mistaken(t, "help", "frobnicate"))
}

// What is only the roof of other commands prints its help.
func TestHelpOfRoofs(t *testing.T) {
	for _, line := range []string{"", "help", "help run", "help help", "completion", "help completion bash"} {
		streams, _, out, _ := genericiooptions.NewTestIOStreams()
		root := Command(streams)
		root.SetOut(out)
		root.SetArgs(strings.Fields(line))
		require.NoError(t, root.Execute(), line)
		require.Contains(t, out.String(), "Usage:", line)
	}
}
