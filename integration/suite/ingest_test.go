package suite

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// The app's environment arrives on the laptop, as far as the user may read it, and nothing changes
// in the cluster.
func TestIngest(t *testing.T) {
	kit.Parallel(t, kit.Uses(kit.Machine))
	manifest := kit.Testdata("settings.yaml")
	kit.Kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "-f", manifest, "--wait=false") })
	kit.WaitForRollout(t, "shop", "deployment/settings")
	pod := kit.Query(t, "shop", "pods -l app=settings", "{.items[0].metadata.name}")
	want := map[string]string{
		"COLOUR":   "blue",
		"SIZE":     "12",
		"GREETING": "a blue $(COLOUR)",
		"TOKEN":    "it's secret",
		"POD":      pod,
		"MEMORY":   "64",
		"ADDRESS":  kit.Kubectl(t, "-n", "shop", "get", "pod", pod, "-o", "jsonpath={.status.podIP}"),
	}
	kit.Connect(t)
	lines, object := filepath.Join(t.TempDir(), "env"), filepath.Join(t.TempDir(), "env.json")
	require.NoError(t, os.WriteFile(lines, []byte("old"), 0o644))
	read := func() map[string]string {
		raw, err := os.ReadFile(object)
		require.NoError(t, err)
		var got map[string]string
		require.NoError(t, json.Unmarshal(raw, &got))
		return got
	}

	out := kit.Detour(t, "intercept", "settings", "--mode", "ingest", "--env-file", lines, "--env-json", object)
	require.Contains(t, out, "ingested: the environment of container app of deployment/settings")
	require.NotContains(t, out, "warning")
	require.Equal(t, want, read())
	for _, file := range []string{lines, object} {
		info, err := os.Stat(file)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), file)
	}
	got, err := kit.Run("sh", "-c", ". "+lines+` && echo "$GREETING, $TOKEN"`)
	require.NoError(t, err, got)
	require.Equal(t, "a blue $(COLOUR), it's secret", got)
	require.Contains(t, kit.Kubectl(t, "-n", "shop", "get", "intercepts"), "Ingest")
	require.Contains(t, kit.Detour(t, "status"), "mode ingest")
	require.Contains(t, kit.Detour(t, "leave", "settings"), "left: service settings")

	require.Contains(t, kit.Detour(t, "intercept", "deployment/settings", "--mode", "ingest", "--", "sh", "-c",
		`echo "$COLOUR, $TOKEN"; test -x "$(command -v ls)"`), "blue, it's secret")
	require.Equal(t, pod, kit.Query(t, "shop", "pods -l app=settings", "{.items[*].metadata.name}"),
		"nothing was rolled out")

	mine := kit.Developer(t, "jim")
	out = kit.Detour(t, "--kubeconfig", mine, "intercept", "settings", "--mode", "ingest", "--env-json", object)
	require.Contains(t, out,
		"warning: parts of the environment are missing: configmap settings (you may not read it), secret no-such-secret (you may not read it), secret settings (you may not read it)")
	require.Equal(t, map[string]string{
		"GREETING": "a $(COLOUR) $(COLOUR)", "POD": pod, "ADDRESS": want["ADDRESS"],
		"MEMORY": "64",
	}, read())
}
