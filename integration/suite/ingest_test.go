package suite

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// The app's environment comes to the laptop, as far as the user may read it, and nothing changes in the cluster.
func TestIngest(t *testing.T) {
	manifest := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/settings.yaml")
	kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kubectl(t, "delete", "-f", manifest, "--wait=false") })
	kubectl(t, "-n", "shop", "rollout", "status", "deployment/settings", "--timeout=120s")
	pod := kubectl(t, "-n", "shop", "get", "pods", "-l", "app=settings", "-o", "jsonpath={.items[0].metadata.name}")
	want := map[string]string{
		"COLOUR": "blue", "SIZE": "12", "GREETING": "a blue $(COLOUR)", "TOKEN": "it's secret", "POD": pod, "MEMORY": "64",
		"ADDRESS": kubectl(t, "-n", "shop", "get", "pod", pod, "-o", "jsonpath={.status.podIP}"),
	}
	connected(t)
	lines, object := filepath.Join(t.TempDir(), "env"), filepath.Join(t.TempDir(), "env.json")
	require.NoError(t, os.WriteFile(lines, []byte("old"), 0o644))
	read := func() map[string]string {
		raw, err := os.ReadFile(object)
		require.NoError(t, err)
		var got map[string]string
		require.NoError(t, json.Unmarshal(raw, &got))
		return got
	}

	out := detour(t, "intercept", "settings", "--mode", "ingest", "--env-file", lines, "--env-json", object)
	require.Contains(t, out, "ingested: the environment of container app of deployment/settings")
	require.NotContains(t, out, "warning")
	require.Equal(t, want, read())
	for _, file := range []string{lines, object} {
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), file)
	}
	got, err := command("sh", "-c", ". "+lines+` && echo "$GREETING, $TOKEN"`)
	require.NoError(t, err, got)
	require.Equal(t, "a blue $(COLOUR), it's secret", got)
	require.Contains(t, kubectl(t, "-n", "shop", "get", "intercepts"), "Ingest")
	require.Contains(t, detour(t, "status"), "mode ingest")
	require.Contains(t, detour(t, "leave", "settings"), "left: service settings")

	require.Contains(t, detour(t, "intercept", "deployment/settings", "--mode", "ingest", "--", "sh", "-c", `echo "$COLOUR, $TOKEN"; test -x "$(command -v ls)"`), "blue, it's secret")
	require.Equal(t, pod, kubectl(t, "-n", "shop", "get", "pods", "-l", "app=settings", "-o", "jsonpath={.items[*].metadata.name}"), "nothing was rolled out")

	mine := developer(t, "jim")
	kubectl(t, "-n", "shop", "create", "rolebinding", "jim", "--clusterrole=detour-user", "--serviceaccount=shop:jim")
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "rolebinding", "jim") })
	out = detour(t, "--kubeconfig", mine, "intercept", "settings", "--mode", "ingest", "--env-json", object)
	require.Contains(t, out, "warning: parts of the environment are missing: configmap settings (you may not read it), secret no-such-secret (you may not read it), secret settings (you may not read it)")
	require.Equal(t, map[string]string{"GREETING": "a $(COLOUR) $(COLOUR)", "POD": pod, "ADDRESS": want["ADDRESS"], "MEMORY": "64"}, read())
}
