// Command image builds the programs that run in the cluster and writes their images as tarballs
// into bin/.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/detour-dev/detour/integration/cluster/image"
)

func main() {
	root := flag.String("root", "..", "the repository")
	version := flag.String("version", "v0.1.0-dev", "the version to build in")
	flag.Parse()
	if err := run(*root, *version); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		os.Exit(1)
	}
}

func run(root, version string) error {
	images := []struct {
		tarball, reference string
		entrypoint         []string
		programs           map[string]string
	}{
		{"traffic.tar", "detour.local/traffic:dev", []string{"/traffic"}, map[string]string{
			"/traffic":        "./cmd/traffic",
			"/traffic-agent":  "./cmd/traffic/agent",
			"/traffic-keeper": "./cmd/traffic/keeper",
		}},
		{"bench.tar", "detour.local/bench:dev", []string{"/bench"}, map[string]string{
			"/bench":   "./cmd/bench",
			"/echo":    "./cmd/echo",
			"/queue":   "./cmd/queue",
			"/subject": "./cmd/subject",
		}},
		{"shop.tar", "detour.local/shop:dev", nil, map[string]string{
			"/frontend": "./examples/shop/frontend",
			"/catalog":  "./examples/shop/catalog",
			"/stock":    "./examples/shop/stock",
		}},
	}
	bin := filepath.Join(root, "bin")
	for _, i := range images {
		files := map[string]string{}
		for path, pkg := range i.programs {
			out := filepath.Join(bin, filepath.Base(path))
			cmd := exec.Command("go", "build", "-trimpath", "-ldflags",
				"-s -w -X github.com/detour-dev/detour/pkg/version.Version="+version, "-o", out, pkg)
			cmd.Dir, cmd.Stderr = root, os.Stderr
			if i.tarball == "bench.tar" {
				cmd.Dir = filepath.Join(root, "integration")
			}
			cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
			if abs, err := filepath.Abs(out); err == nil {
				cmd.Args[len(cmd.Args)-2] = abs
			}
			fmt.Fprintln(os.Stderr, "building", path)
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("build %s: %w", pkg, err)
			}
			files[path] = out
		}
		if err := image.Write(filepath.Join(bin, i.tarball), i.reference, image.Options{
			Entrypoint: i.entrypoint,
			Files:      files,
		}); err != nil {
			return err
		}
	}
	return nil
}
