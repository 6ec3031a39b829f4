package kubeconfig

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"k8s.io/cli-runtime/pkg/genericclioptions"
)

const good = `apiVersion: v1
kind: Config
clusters: [{name: a, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: a, user: {token: t}}]
contexts: [{name: a, context: {cluster: a, user: a, namespace: shop}}]
current-context: a
`

func load(t *testing.T, args ...string) (*Loaded, error) {
	flags := genericclioptions.NewConfigFlags(true)
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	flags.AddFlags(f)
	require.NoError(t, f.Parse(args))
	return Load(flags)
}

// atHome makes a home without a kubeconfig, and makes it the working directory.
func atHome(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("KUBECONFIG", "")
	t.Chdir(home)
}

func TestLoad(t *testing.T) {
	atHome(t)
	require.NoError(t, os.WriteFile("config", []byte(good), 0o600))
	for name, c := range map[string]struct {
		args                     []string
		host, context, namespace string
	}{
		"without flags": {host: "https://127.0.0.1:1", context: "a", namespace: "shop"},
		"with flags": {
			args: []string{"--context", "a", "--server", "https://k8s.example", "-n", "default"},
			host: "https://k8s.example", context: "a", namespace: "default",
		},
		"without a kubeconfig": {
			args: []string{"--kubeconfig", "/dev/null", "--server", "https://k8s.example", "--token", "t"},
			host: "https://k8s.example", namespace: "default",
		},
		"kubectl proxy": {
			args: []string{"--kubeconfig", "/dev/null", "--server", "http://localhost:8080"},
			host: "http://localhost:8080", namespace: "default",
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := load(t, append([]string{"--kubeconfig", "config"}, c.args...)...)
			require.NoError(t, err)
			require.Equal(t, c.host, got.Config.Host)
			require.Equal(t, c.context, got.Context)
			require.Equal(t, c.namespace, got.Namespace)
		})
	}
}

func TestLoadExplainsWhatIsWrong(t *testing.T) {
	with := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	const (
		fix = "): fix it, or choose another with --kubeconfig"
		url = " is not a valid URL: fix it in the kubeconfig or in --server, as in https://k8s.example.com:6443"
	)
	for name, c := range map[string]struct {
		file string
		args []string
		want string
	}{
		"an empty file": {file: "", want: "the kubeconfig config names no cluster: choose another with --kubeconfig"},
		"another file": {
			file: "hello: world\n", want: "the kubeconfig config names no cluster: choose another with --kubeconfig",
		},
		"not YAML": {
			file: "this: [is not\n yaml",
			want: `the kubeconfig cannot be used (error loading config file "config": ` +
				`yaml: line 2: did not find expected ',' or ']'` + fix,
		},
		"no current context": {
			file: with("current-context: a", ""),
			want: "the kubeconfig has no current context: " +
				"choose one with `kubectl config use-context NAME`, or use --context",
		},
		"an unknown context": {
			file: good, args: []string{"--context", "nope"},
			want: "context \"nope\" does not exist in the kubeconfig: " +
				"`kubectl config get-contexts` lists the valid names",
		},
		"an unknown current context": {
			file: with("current-context: a", "current-context: b"),
			want: "context \"b\" does not exist in the kubeconfig: " +
				"`kubectl config get-contexts` lists the valid names",
		},
		"an unknown cluster": {
			file: good, args: []string{"--cluster", "nope"},
			want: "cluster \"nope\" does not exist in the kubeconfig: " +
				"`kubectl config get-clusters` lists the valid names",
		},
		"an unknown user": {
			file: good, args: []string{"--user", "nope"},
			want: "user \"nope\" does not exist in the kubeconfig: " +
				"`kubectl config get-users` lists the valid names",
		},
		"a cluster without a server": {
			file: with(`server: "https://127.0.0.1:1"`, "insecure-skip-tls-verify: true"),
			want: "cluster \"a\" in the kubeconfig has no server: " +
				"add it with `kubectl config set-cluster a --server=URL`, or choose another context with --context",
		},
		"a context without a cluster": {
			file: with("cluster: a, ", ""),
			want: `context "a" in the kubeconfig names no cluster: choose another with --context`,
		},
		"a server that is not a URL": {
			file: with("https://127.0.0.1:1", "://x y"), want: `the address of the API server, "://x y",` + url,
		},
		"a flag that is not a URL": {
			file: good, args: []string{"--server", "ht tp://x"},
			want: `the address of the API server, "ht tp://x",` + url,
		},
		"a missing CA file": {
			file: with("{server:", "{certificate-authority: /nonexistent/ca.crt, server:"),
			want: "the kubeconfig cannot be used (unable to read certificate-authority /nonexistent/ca.crt for a " +
				"due to open /nonexistent/ca.crt: no such file or directory" + fix,
		},
		"a CA that is not PEM": {
			file: with("{server:", "{certificate-authority-data: aGVsbG8=, server:"),
			want: "the kubeconfig cannot be used (unable to load root certificates: " +
				"unable to parse bytes as PEM block" + fix,
		},
		"a missing token file": {
			file: with("{token: t}", "{tokenFile: /nonexistent/token}"),
			want: "the kubeconfig cannot be used (open /nonexistent/token: no such file or directory" + fix,
		},
		"an auth provider": {
			file: with("{token: t}", "{auth-provider: {name: oidc}}"),
			want: `the kubeconfig uses the auth provider "oidc", which Kubernetes no longer supports: ` +
				`use its credential plugin`,
		},
		"a missing file": {
			file: good, args: []string{"--kubeconfig", "/nonexistent"},
			want: "the kubeconfig cannot be used (stat /nonexistent: no such file or directory" + fix,
		},
		"a timeout that is not a duration": {
			file: good, args: []string{"--request-timeout", "abc"},
			want: "--request-timeout abc is not a duration: write for example --request-timeout 30s",
		},
		"a wrong namespace": {
			file: good, args: []string{"-n", "Bad Name"},
			want: `--namespace "Bad Name" is not a valid name in Kubernetes: ` +
				`use only lowercase letters, digits, - and ., as in my-app`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			atHome(t)
			require.NoError(t, os.WriteFile("config", []byte(c.file), 0o600))
			_, err := load(t, append([]string{"--kubeconfig", "config"}, c.args...)...)
			require.EqualError(t, err, c.want)
		})
	}
}

func TestLoadWithoutAKubeconfig(t *testing.T) {
	atHome(t)
	_, err := load(t)
	require.EqualError(t, err, "no cluster is configured: set KUBECONFIG or use --kubeconfig")
	t.Setenv("KUBECONFIG", "/nonexistent"+string(filepath.ListSeparator)+"/neither")
	_, err = load(t)
	require.EqualError(t, err, "KUBECONFIG names /nonexistent and /neither, but no such file exists: "+
		"set it to an existing file, or use --kubeconfig")
}
