package cluster

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// component is a module under build/ and the programs made of it.
type component struct {
	module   string
	version  string
	takes    string
	ldflags  string
	packages map[string]string // program -> package
}

func components() []component {
	const k = "k8s.io/kubernetes/cmd/"
	const v = "-X k8s.io/component-base/version."
	return []component{
		{
			module: "kubernetes", version: Version, takes: "about 6 minutes on 2 cores",
			ldflags: "-s -w " + v + "gitVersion=" + Version + " " + v + "gitMajor=1 " + v + "gitMinor=34 " +
				v + "gitTreeState=clean",
			packages: map[string]string{
				"kube-apiserver":          k + "kube-apiserver",
				"kube-controller-manager": k + "kube-controller-manager",
				"kube-scheduler":          k + "kube-scheduler",
				"kubelet":                 k + "kubelet",
				"kube-proxy":              k + "kube-proxy",
				"kubectl":                 k + "kubectl",
			},
		},
		{
			module: "etcd", version: "v3.7.3", takes: "half a minute", ldflags: "-s -w",
			packages: map[string]string{"etcd": "."},
		},
		{
			module: "coredns", version: "v1.15.0", takes: "a minute", ldflags: "-s -w",
			packages: map[string]string{"coredns": "."},
		},
	}
}

// Build makes the programs that are not in the cache yet. source is the directory
// integration/cluster/build.
func (c *Cluster) Build(ctx context.Context, source string, log *slog.Logger) error {
	for _, comp := range components() {
		dir, err := c.build(ctx, source, comp, log)
		if err != nil {
			return err
		}
		if err := c.link(dir, comp); err != nil {
			return err
		}
	}
	return nil
}

// ArgoRollouts makes the controller of Argo Rollouts, if it is not in the cache yet, and says where
// it is and where its module has the custom resources. Only their test needs it.
func (c *Cluster) ArgoRollouts(
	ctx context.Context, source string, log *slog.Logger,
) (controller, definitions string, err error) {
	const module = "github.com/argoproj/argo-rollouts"
	const version = "v1.10.1"
	dir, err := c.build(ctx, source, component{
		module: "argo-rollouts", version: version, takes: "about 3 minutes on 2 cores",
		ldflags:  "-s -w -X " + module + "/utils/version.version=" + version,
		packages: map[string]string{"rollouts-controller": module + "/cmd/rollouts-controller"},
	}, log)
	if err != nil {
		return "", "", err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module)
	cmd.Dir = filepath.Join(source, "argo-rollouts")
	out, err := cmd.Output()
	if err != nil {
		return "", "", fmt.Errorf("find the module of Argo Rollouts: %w", err)
	}
	var found struct{ Dir string }
	if err := json.Unmarshal(out, &found); err != nil {
		return "", "", fmt.Errorf("find the module of Argo Rollouts: %w", err)
	}
	return filepath.Join(dir, "rollouts-controller"), filepath.Join(found.Dir, "manifests", "crds"), nil
}

// build makes the programs of a component that are not in the cache yet, and says where they are.
func (c *Cluster) build(ctx context.Context, source string, comp component, log *slog.Logger) (string, error) {
	module := filepath.Join(source, comp.module)
	dir, err := c.binDir(module)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(filepath.Join(dir, "done")); err == nil {
		return dir, nil
	}
	log.Info("building "+comp.module+" "+comp.version, "takes", comp.takes)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache: %w", err)
	}
	args := []string{"build", "-trimpath", "-ldflags", comp.ldflags, "-o", dir + "/"}
	for _, p := range comp.packages {
		args = append(args, p)
	}
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if err := runTicking(cmd, "still building "+comp.module, log); err != nil {
		return "", fmt.Errorf("build %s: %w", comp.module, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "done"), nil, 0o644); err != nil {
		return "", fmt.Errorf("mark the build: %w", err)
	}
	return dir, nil
}

// binDir is named after what the programs are made of, so that any checkout with the same source
// finds them.
func (c *Cluster) binDir(module string) (string, error) {
	h := sha256.New()
	for _, name := range []string{"go.mod", "go.sum", "main.go"} {
		raw, err := os.ReadFile(filepath.Join(module, name))
		if err != nil && !os.IsNotExist(err) {
			return "", fmt.Errorf("read %s: %w", name, err)
		}
		h.Write(raw)
	}
	return filepath.Join(c.Cache, "bin", filepath.Base(module)+"-"+hex.EncodeToString(h.Sum(nil))[:16]), nil
}

func (c *Cluster) link(dir string, comp component) error {
	bin := c.path("bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", bin, err)
	}
	for program := range comp.packages {
		to := filepath.Join(bin, program)
		_ = os.Remove(to)
		if err := os.Symlink(filepath.Join(dir, program), to); err != nil {
			return fmt.Errorf("link %s: %w", program, err)
		}
	}
	return nil
}

// runTicking runs cmd and says every 20 s that it still runs.
func runTicking(cmd *exec.Cmd, what string, log *slog.Logger) error {
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	tick := time.NewTicker(20 * time.Second)
	defer tick.Stop()
	start := time.Now()
	for {
		select {
		case err := <-done:
			if err != nil {
				return fmt.Errorf("%w: %s", err, lastLines(out.String(), 5))
			}
			return nil
		case <-tick.C:
			log.Info(what, "seconds", int(time.Since(start).Seconds()))
		}
	}
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "; ")
}

// buildPause makes the program that holds a pod's namespaces.
func (c *Cluster) buildPause(ctx context.Context, source string, log *slog.Logger) (string, error) {
	out := c.path("bin", "pause")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, "./pause")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if err := runTicking(cmd, "still building pause", log); err != nil {
		return "", fmt.Errorf("build pause: %w", err)
	}
	return out, nil
}
