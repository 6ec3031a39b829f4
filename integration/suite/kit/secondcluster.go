package kit

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/cluster"
)

// StartSecondCluster starts another Kubernetes beside the first one, with the shop and detour,
// until the test ends. The edition of its catalog is "second".
func StartSecondCluster(t *testing.T) (kubeconfig string) {
	t.Helper()
	c, err := cluster.Second()
	require.NoError(t, err)
	log := slog.New(slog.DiscardHandler)
	t.Cleanup(func() { require.NoError(t, c.Down(log)) })
	require.NoError(t, c.Up(t.Context(), Path("integration", "cluster", "build"), log))
	require.NoError(t, c.LoadImages(Path("bin", "traffic.tar"), Path("bin", "shop.tar")))
	require.NoError(t, c.Kubectl("apply", "-f", Path("examples", "shop", "manifests", "shop.yaml")))
	require.NoError(t, c.Kubectl("-n", "shop", "set", "env", "deployment/catalog", "EDITION=second"))
	Detour(t, "install", "--image", ManagerImage, "--kubeconfig", c.Kubeconfig())
	limit := "--timeout=" + Patience(t).String()
	require.NoError(t, c.Kubectl("-n", "shop", "rollout", "status", "deployment/catalog", limit))
	return c.Kubeconfig()
}
