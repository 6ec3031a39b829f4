package dnsproxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
)

// resolverDirectory holds a file for each domain that has a server of its own (resolver(5)).
const resolverDirectory = "/etc/resolver"

// macOS asks the proxy for each suffix in the cluster's search path. It builds but was never tried.
type macOS struct{ ResolvConf }

// FindSystem returns the name resolution of this laptop.
func FindSystem(_ context.Context, file ResolvConf, _ *slog.Logger) System { return macOS{file} }

// PutBack undoes what an earlier process has set.
func PutBack(file ResolvConf) error { return macOS{file}.Restore() }

func (m macOS) Upstream() ([]string, error) {
	servers, _, err := m.ResolvConf.Upstream()
	return servers, err
}

func (macOS) Keep() error { return nil }

func (m macOS) Set(_ string, server netip.Addr, search []string) error {
	if err := os.MkdirAll(resolverDirectory, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", resolverDirectory, err)
	}
	for _, domain := range search {
		text := fmt.Sprintf("%snameserver %s\n", header, server)
		if err := os.WriteFile(filepath.Join(resolverDirectory, domain), []byte(text), 0o644); err != nil {
			return fmt.Errorf("tell the system of %s: %w", domain, err)
		}
	}
	return nil
}

func (m macOS) Restore() error {
	files, err := filepath.Glob(filepath.Join(resolverDirectory, "*"))
	if err != nil {
		return fmt.Errorf("list %s: %w", resolverDirectory, err)
	}
	var all []error
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil && bytes.HasPrefix(raw, []byte(header)) {
			all = append(all, os.Remove(f))
		}
	}
	return errors.Join(all...)
}
