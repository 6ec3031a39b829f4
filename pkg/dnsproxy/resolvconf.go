package dnsproxy

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// ResolvConf manages /etc/resolv.conf (resolv.conf(5)). It copies the file into a directory before
// it changes anything, so that it can restore the file after a crash too.
type ResolvConf struct {
	Path  string // normally /etc/resolv.conf
	State string // directory for the copy
}

const header = "# Written by detour; the file that was here is put back by `detour quit`.\n"

func (r ResolvConf) backup() string  { return filepath.Join(r.State, "resolv.conf.before") }
func (r ResolvConf) written() string { return filepath.Join(r.State, "resolv.conf.ours") }

// Upstream returns the resolvers of the file as host:port, and its search path. A missing file has
// neither.
func (r ResolvConf) Upstream() (servers, search []string, err error) {
	raw, err := os.ReadFile(r.Path)
	if os.IsNotExist(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", r.Path, err)
	}
	for line := range strings.Lines(string(raw)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			servers = append(servers, net.JoinHostPort(fields[1], "53"))
		case "search", "domain": // the last line decides
			search = fields[1:]
		}
	}
	return servers, search, nil
}

// With returns the file's text with server as the only resolver, and with search before the file's
// own search path. It keeps the file's options.
func (r ResolvConf) With(server netip.Addr, search []string) (string, error) {
	now, err := os.ReadFile(r.Path)
	if err != nil && !os.IsNotExist(err) {
		return "", fmt.Errorf("read %s: %w", r.Path, err)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "nameserver %s\n", server)
	_, old, err := r.Upstream()
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(now)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "options" {
			b.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	search = slices.Concat(search, old)
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	return b.String(), nil
}

// Set writes the text of With to the file, after it has copied the file.
func (r ResolvConf) Set(server netip.Addr, search []string) error {
	// A crashed session may have left its own text in the file.
	if err := r.Restore(); err != nil {
		return err
	}
	before, err := os.ReadFile(r.Path)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("read %s: %w", r.Path, err)
	}
	text, err := r.With(server, search)
	if err != nil {
		return err
	}
	text = header + text
	if err := os.WriteFile(r.backup(), before, 0o600); err != nil {
		return fmt.Errorf("keep a copy of %s: %w", r.Path, err)
	}
	if err := os.WriteFile(r.written(), []byte(text), 0o600); err != nil {
		return fmt.Errorf("note the new text of %s: %w", r.Path, err)
	}
	// Set writes in place. A rename would fail or mislead, because the file is often a bind mount
	// or a symbolic link.
	if err := os.WriteFile(r.Path, []byte(text), 0o644); err != nil {
		_ = os.WriteFile(r.Path, before, 0o644) // the old text had room
		return fmt.Errorf("write %s: %w", r.Path, err)
	}
	return nil
}

// LeftBehind reports whether detour wrote the file and its resolver no longer exists on this
// machine. It needs no right to change the file.
func (r ResolvConf) LeftBehind() bool {
	now, err := os.ReadFile(r.Path)
	if err != nil || !bytes.HasPrefix(now, []byte(header)) {
		return false
	}
	servers, _, err := r.Upstream()
	if err != nil || len(servers) == 0 {
		return false
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return !slices.ContainsFunc(own, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		return ok && net.JoinHostPort(n.IP.String(), "53") == servers[0]
	})
}

// Restore restores the file from its copy, unless another program has written the file since.
// Without a copy it does nothing.
func (r ResolvConf) Restore() error {
	before, err := os.ReadFile(r.backup())
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the copy of %s: %w", r.Path, err)
	}
	text, _ := os.ReadFile(r.written())
	now, err := os.ReadFile(r.Path)
	if err == nil && bytes.Equal(now, text) {
		if err := os.WriteFile(r.Path, before, 0o644); err != nil {
			return fmt.Errorf("put %s back: %w", r.Path, err)
		}
	}
	_ = os.Remove(r.written())
	if err := os.Remove(r.backup()); err != nil {
		return fmt.Errorf("remove the copy of %s: %w", r.Path, err)
	}
	return nil
}
