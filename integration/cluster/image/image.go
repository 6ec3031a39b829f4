// Package image writes container images without a registry or an engine: static binaries in one
// layer, as a tarball that `ctr images import` reads.
package image

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"os"
	"sort"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Options describe an image.
type Options struct {
	Entrypoint []string
	Files      map[string]string // path in the image -> file on this machine; all are executable
	User       string            // "" is root
	Env        []string
}

// Write makes the image and writes it to path under the given reference.
func Write(path, reference string, o Options) error {
	tag, err := name.NewTag(reference)
	if err != nil {
		return fmt.Errorf("image reference: %w", err)
	}
	layer, err := layerOf(o.Files)
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return fmt.Errorf("add the layer: %w", err)
	}
	config, err := img.ConfigFile()
	if err != nil {
		return fmt.Errorf("read the image's configuration: %w", err)
	}
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", "amd64"
	config.Config = v1.Config{Entrypoint: o.Entrypoint, User: o.User, Env: append([]string{"PATH=/"}, o.Env...)}
	if img, err = mutate.ConfigFile(img, config); err != nil {
		return fmt.Errorf("set the image's configuration: %w", err)
	}
	if err := tarball.WriteToFile(path, tag, img); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func layerOf(files map[string]string) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	paths := make([]string, 0, len(files))
	for p := range files {
		paths = append(paths, p)
	}
	sort.Strings(paths)
	if err := w.WriteHeader(&tar.Header{Name: "tmp/", Typeflag: tar.TypeDir, Mode: 0o1777}); err != nil {
		return nil, fmt.Errorf("write the layer: %w", err)
	}
	for _, p := range paths {
		raw, err := os.ReadFile(files[p])
		if err != nil {
			return nil, fmt.Errorf("read a file of the image: %w", err)
		}
		if err := w.WriteHeader(&tar.Header{Name: p[1:], Mode: 0o755, Size: int64(len(raw))}); err != nil {
			return nil, fmt.Errorf("write the layer: %w", err)
		}
		if _, err := w.Write(raw); err != nil {
			return nil, fmt.Errorf("write the layer: %w", err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("write the layer: %w", err)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(buf.Bytes())), nil }
	layer, err := tarball.LayerFromOpener(open)
	if err != nil {
		return nil, fmt.Errorf("make the layer: %w", err)
	}
	return layer, nil
}
