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

// atHome is a home without a kubeconfig; the working directory is its.
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
		"as it is":      {nil, "https://127.0.0.1:1", "a", "shop"},
		"with flags":    {[]string{"--context", "a", "--server", "https://k8s.example", "-n", "default"}, "https://k8s.example", "a", "default"},
		"no kubeconfig": {[]string{"--kubeconfig", "/dev/null", "--server", "https://k8s.example", "--token", "t"}, "https://k8s.example", "", "default"},
		"kubectl proxy": {[]string{"--kubeconfig", "/dev/null", "--server", "http://localhost:8080"}, "http://localhost:8080", "", "default"},
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

func TestWhatIsWrongWithAKubeconfig(t *testing.T) {
	with := func(old, new string) string { return strings.Replace(good, old, new, 1) }
	const mend = "): mend it, or choose another with --kubeconfig"
	for name, c := range map[string]struct {
		file string
		args []string
		want string
	}{
		"empty":            {"", nil, "the kubeconfig config names no cluster: choose another with --kubeconfig"},
		"something else":   {"hello: world\n", nil, "the kubeconfig config names no cluster: choose another with --kubeconfig"},
		"not YAML":         {"this: [is not\n yaml", nil, `the kubeconfig cannot be used (error loading config file "config": yaml: line 2: did not find expected ',' or ']'` + mend},
		"no context":       {with("current-context: a", ""), nil, "the kubeconfig has no current context: choose one with `kubectl config use-context NAME`, or give --context"},
		"unknown context":  {good, []string{"--context", "nope"}, "context \"nope\" does not exist in the kubeconfig: `kubectl config get-contexts` lists what there is"},
		"unknown current":  {with("current-context: a", "current-context: b"), nil, "context \"b\" does not exist in the kubeconfig: `kubectl config get-contexts` lists what there is"},
		"unknown cluster":  {good, []string{"--cluster", "nope"}, "cluster \"nope\" does not exist in the kubeconfig: `kubectl config get-clusters` lists what there is"},
		"unknown user":     {good, []string{"--user", "nope"}, "user \"nope\" does not exist in the kubeconfig: `kubectl config get-users` lists what there is"},
		"no server":        {with(`server: "https://127.0.0.1:1"`, "insecure-skip-tls-verify: true"), nil, "cluster \"a\" in the kubeconfig has no server: add it with `kubectl config set-cluster a --server=URL`, or choose another context with --context"},
		"no cluster":       {with("cluster: a, ", ""), nil, `context "a" in the kubeconfig names no cluster: choose another with --context`},
		"no URL":           {with("https://127.0.0.1:1", "://x y"), nil, `the address of the API server, "://x y", is no URL: mend it in the kubeconfig or in --server, as in https://k8s.example.com:6443`},
		"no URL by flag":   {good, []string{"--server", "ht tp://x"}, `the address of the API server, "ht tp://x", is no URL: mend it in the kubeconfig or in --server, as in https://k8s.example.com:6443`},
		"no CA file":       {with("{server:", "{certificate-authority: /nonexistent/ca.crt, server:"), nil, "the kubeconfig cannot be used (unable to read certificate-authority /nonexistent/ca.crt for a due to open /nonexistent/ca.crt: no such file or directory" + mend},
		"no CA":            {with("{server:", "{certificate-authority-data: aGVsbG8=, server:"), nil, "the kubeconfig cannot be used (unable to load root certificates: unable to parse bytes as PEM block" + mend},
		"no token file":    {with("{token: t}", "{tokenFile: /nonexistent/token}"), nil, "the kubeconfig cannot be used (open /nonexistent/token: no such file or directory" + mend},
		"an auth provider": {with("{token: t}", "{auth-provider: {name: oidc}}"), nil, `the kubeconfig uses the auth provider "oidc", which Kubernetes has given up: use its credential plugin`},
		"no file":          {good, []string{"--kubeconfig", "/nonexistent"}, "the kubeconfig cannot be used (stat /nonexistent: no such file or directory" + mend},
		"no time":          {good, []string{"--request-timeout", "abc"}, "--request-timeout abc is no time: write for example --request-timeout 30s"},
		"no namespace":     {good, []string{"-n", "Bad Name"}, `--namespace "Bad Name" is not a valid name in Kubernetes: use only lowercase letters, digits, - and ., as in my-app`},
	} {
		t.Run(name, func(t *testing.T) {
			atHome(t)
			require.NoError(t, os.WriteFile("config", []byte(c.file), 0o600))
			_, err := load(t, append([]string{"--kubeconfig", "config"}, c.args...)...)
			require.EqualError(t, err, c.want)
		})
	}
}

func TestNoKubeconfig(t *testing.T) {
	atHome(t)
	_, err := load(t)
	require.EqualError(t, err, "no cluster is configured: set KUBECONFIG or give --kubeconfig")
	t.Setenv("KUBECONFIG", "/nonexistent"+string(filepath.ListSeparator)+"/neither")
	_, err = load(t)
	require.EqualError(t, err, "KUBECONFIG names /nonexistent and /neither, which is not there: set it to a file that is, or give --kubeconfig")
}
