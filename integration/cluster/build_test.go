package cluster

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// A module under build/ must want the version that its component says, and of Kubernetes all that
// belongs to it: with newer ones it does not build, which is seen only where no cache has it.
func TestModulesAreOfTheirVersions(t *testing.T) {
	for module, version := range map[string]string{"kubernetes": Version, "coredns": components()[2].version} {
		path := map[string]string{"kubernetes": "k8s.io/kubernetes", "coredns": "github.com/coredns/coredns"}[module]
		cmd := exec.Command("go", "list", "-m", "-f", "{{.Version}}", path)
		cmd.Dir = "build/" + module
		cmd.Env = append(cmd.Environ(), "GOFLAGS=")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
		require.Equal(t, version, strings.TrimSpace(string(out)), path)
	}
}
