package kit

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// KubeconfigWith returns a kubeconfig of the cluster with other credentials, given as flags of
// "kubectl config set-credentials".
func KubeconfigWith(t *testing.T, credentials ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	raw, err := os.ReadFile(os.Getenv("KUBECONFIG"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, raw, 0o600))
	name := Kubectl(t, "config", "view", "-o", "jsonpath={.clusters[0].name}")
	Kubectl(t, append([]string{"--kubeconfig", path, "config", "set-credentials", "someone"}, credentials...)...)
	Kubectl(t, "--kubeconfig", path, "config", "set-context", "someone", "--cluster", name, "--user", "someone")
	Kubectl(t, "--kubeconfig", path, "config", "use-context", "someone")
	return path
}

// ServiceAccount makes a service account in the shop, without any right, and returns a kubeconfig
// with its token.
func ServiceAccount(t *testing.T, name string) (kubeconfig string) {
	t.Helper()
	Kubectl(t, "-n", "shop", "create", "serviceaccount", name)
	t.Cleanup(func() { Kubectl(t, "-n", "shop", "delete", "serviceaccount", name) })
	return KubeconfigWith(t, "--token="+Kubectl(t, "-n", "shop", "create", "token", name))
}

// Developer makes a service account that has the shipped role detour-user in the shop, and returns
// its kubeconfig.
func Developer(t *testing.T, name string) (kubeconfig string) {
	t.Helper()
	kubeconfig = ServiceAccount(t, name)
	Kubectl(t, "-n", "shop", "create", "rolebinding", name, "--clusterrole=detour-user", "--serviceaccount=shop:"+name)
	t.Cleanup(func() { Kubectl(t, "-n", "shop", "delete", "rolebinding", name) })
	return kubeconfig
}
