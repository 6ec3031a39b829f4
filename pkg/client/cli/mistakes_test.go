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

// failure runs a command that fails before it starts a daemon, and returns the message.
func failure(t *testing.T, args ...string) string {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("DETOUR_RUN_DIR", filepath.Join(home, "run"))
	t.Setenv("DETOUR_STATE_DIR", filepath.Join(home, "state"))
	root := Command(genericiooptions.NewTestIOStreamsDiscard())
	root.SetArgs(args)
	err := root.Execute()
	require.Error(t, err)
	require.NoDirExists(t, filepath.Join(home, "run"), "no daemon was started")
	require.NotContains(t, err.Error(), "\n")
	return err.Error()
}

// All commands that need a cluster say the same about a kubeconfig that does not lead to one.
func TestAWrongKubeconfigHasOneMessage(t *testing.T) {
	t.Setenv("KUBECONFIG", "/nonexistent")
	for _, command := range []string{
		"list", "install", "uninstall", "connect", "run -- ls", "tail catalog", "intercept catalog --port 8080",
	} {
		args := strings.Fields(command)
		require.Equal(t, "KUBECONFIG names /nonexistent, but no such file exists: set it to an existing file, or "+
			"use --kubeconfig", failure(t, args...), command)
		args = append([]string{"--context", "nope"}, args...)
		require.Equal(t, `context "nope" does not exist in the kubeconfig: `+"`kubectl config get-contexts` lists "+
			"the valid names", failure(t, args...), command)
	}
}

// Any web server answers 404 where an API server lists services.
func TestAServerThatIsNotKubernetes(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	defer server.Close()
	t.Setenv("KUBECONFIG", os.DevNull)
	for _, command := range []string{"list", "uninstall", "install"} {
		require.Equal(t, "the server at "+server.URL+" is not a Kubernetes API server: check the server in your "+
			"kubeconfig, and any proxy on the way to it", failure(t, command, "--server", server.URL), command)
	}
}

func TestMistakesInTheCommandLine(t *testing.T) {
	t.Setenv("KUBECONFIG", os.DevNull)
	for name, c := range map[string]struct {
		args []string
		want string
	}{
		"an unknown command": {
			args: []string{"frobnicate"},
			want: "there is no command \"frobnicate\": see `detour --help`",
		},
		"help about an unknown command": {
			args: []string{"help", "frobnicate"},
			want: "there is no command \"frobnicate\": see `detour --help`",
		},
		"a misspelled command": {
			args: []string{"statsu"},
			want: "there is no command \"statsu\": did you mean `detour status`?",
		},
		"an unknown subcommand": {
			args: []string{"completion", "klingon"},
			want: "there is no command \"klingon\": see `detour completion --help`",
		},
		"an argument too many": {
			args: []string{"completion", "bash", "x"},
			want: "unknown command \"x\" for \"detour completion bash\": usage: `detour completion bash`",
		},
		"an argument that the command does not take": {
			args: []string{"status", "catalog"},
			want: "unknown command \"catalog\" for \"detour status\": usage: `detour status`",
		},
		"a missing argument": {
			args: []string{"leave"},
			want: "accepts 1 arg(s), received 0: usage: `detour leave SERVICE|WORKLOAD`",
		},
		"an unknown flag": {
			args: []string{"leave", "a", "--porrt"},
			want: "unknown flag: --porrt: see `detour leave --help`",
		},
		"a flag that is neither true nor false": {
			args: []string{"intercept", "a", "--port", "8080", "--me=maybe"},
			want: "--me must be true or false, not \"maybe\": see `detour intercept --help`",
		},
		"a mode that is neither true nor false": {
			args: []string{"connect", "--rootless=maybe"},
			want: "--rootless must be true or false, not \"maybe\": see `detour connect --help`",
		},
		"an empty namespace": {
			args: []string{"connect", "--manager-namespace="},
			want: "--manager-namespace is empty: write a name such as my-app",
		},
		"an invalid namespace": {
			args: []string{"install", "--manager-namespace", "Bad"},
			want: `--manager-namespace "Bad" is not a valid name in Kubernetes: ` +
				`use only lowercase letters, digits, - and ., as in my-app`,
		},
		"an invalid service": {
			args: []string{"tail", "Bad"},
			want: `the service "Bad" is not a valid name in Kubernetes: ` +
				`use only lowercase letters, digits, - and ., as in my-app`,
		},
		"an empty port": {
			args: []string{"tail", "catalog", "--port="},
			want: "--port is empty: name one of the service's ports, or omit --port to see all of them",
		},
		"two conditions on the path": {
			args: []string{"intercept", "a", "--port", "8080", "--path", "/a", "--path-prefix", "/b"},
			want: "--path and --path-prefix exclude each other: omit one of them",
		},
		"a relative path": {
			args: []string{"intercept", "a", "--port", "8080", "--path", "api"},
			want: `--path "api" does not begin with /: write for example --path /api`,
		},
		"an invalid duration": {
			args: []string{"uninstall", "--timeout", "abc"},
			want: "--timeout \"abc\" is not a valid duration (for example 5m0s): see `detour uninstall --help`",
		},
		"an empty name": {
			args: []string{"leave", ""},
			want: "the name is empty: name the service or workload to leave; `detour status` lists them",
		},
		"an empty port of an intercept": {
			args: []string{"leave", "catalog", "--port", ""},
			want: "--port is empty: name one of the service's ports, or omit --port to leave all of them",
		},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, c.want, failure(t, c.args...)) })
	}
}

// A wrong -o is refused before the command does anything: repeating `detour leave` does not bring
// the intercept back.
func TestTheOutputFormatIsCheckedFirst(t *testing.T) {
	for _, command := range []string{
		"status", "list", "connect", "version", "intercept catalog --port 8080", "leave catalog", "quit",
		"tail catalog", "install", "uninstall",
	} {
		t.Run(command, func(t *testing.T) {
			got := failure(t, append(strings.Fields(command), "-o", "xml")...)
			require.Equal(t, "-o xml is not an output format: use json or yaml", got)
		})
	}
}

func TestCommandsWithSubcommandsPrintHelp(t *testing.T) {
	for _, line := range []string{"", "help", "help run", "help help", "completion", "help completion bash"} {
		streams, _, out, _ := genericiooptions.NewTestIOStreams()
		root := Command(streams)
		root.SetOut(out)
		root.SetArgs(strings.Fields(line))
		require.NoError(t, root.Execute(), line)
		require.Contains(t, out.String(), "Usage:", line)
	}
}
