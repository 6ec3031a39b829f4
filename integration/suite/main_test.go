// Package suite proves detour against a real Kubernetes: real pods, real redirects, a real TUN.
// integration/run.sh prepares it.
package suite

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/detour-dev/detour/integration/suite/kit"
)

func TestMain(m *testing.M) {
	if os.Getenv("DETOUR_ROOT") == "" {
		fmt.Fprintln(os.Stderr, "the suite needs a cluster: run make test-integration")
		os.Exit(1)
	}
	code := 1
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "preparing the cluster:", err)
	} else {
		code = m.Run()
	}
	_, _ = kit.Run("detour", "quit")
	_, _ = kit.Run("detour", "uninstall")
	_, _ = kit.Run("kubectl", "delete", "namespace", "shop", "other", "--ignore-not-found")
	os.Exit(code)
}

func prepare() error {
	for _, c := range [][]string{
		{"kubectl", "apply", "-f", filepath.Join(os.Getenv("DETOUR_ROOT"), "examples/shop/manifests/shop.yaml")},
		{"kubectl", "-n", "shop", "rollout", "status", "deployment/frontend", "--timeout=120s"},
		{"kubectl", "-n", "shop", "rollout", "status", "deployment/catalog", "--timeout=120s"},
		{"kubectl", "-n", "shop", "rollout", "status", "deployment/stock", "--timeout=120s"},
		{"detour", "install", "--image", kit.ManagerImage},
	} {
		if out, err := kit.Run(c[0], c[1:]...); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(c, " "), err, out)
		}
	}
	return nil
}
