package explain_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/client/explain"
)

func TestNamesOfKubernetesObjects(t *testing.T) {
	for _, good := range []string{"catalog", "a", "my-app.v1", strings.Repeat("a", 63)} {
		require.NoError(t, explain.Name("the service", good))
	}
	require.EqualError(t, explain.Name("--namespace", ""), "--namespace is empty: write a name such as my-app")
	require.EqualError(t, explain.Name("the service", "a\nb"), `the service "a\nb" is not a valid name in `+
		`Kubernetes: use only lowercase letters, digits, - and ., as in my-app`)
	for _, bad := range []string{"Bad Name", "../etc", "a/b", "-a", "a_b"} {
		require.ErrorContains(t, explain.Name("the service", bad), "is not a valid name in Kubernetes")
	}
	long := explain.Name("the service", strings.Repeat("a", 300))
	require.ErrorContains(t, long, "is too long")
	require.Less(t, len(long.Error()), 200)
}
