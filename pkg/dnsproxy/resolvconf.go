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

// ResolvConf manages /etc/resolv.conf (resolv.conf(5)) and puts it back, after a crash as well: what was there is kept in a
// directory of its own before anything is changed.
type ResolvConf struct {
	Path  string // normally /etc/resolv.conf
	State string // directory
}

const header = "# Written by detour; the file that was here is put back by `detour quit`.\n"

func (r ResolvConf) backup() string  { return filepath.Join(r.State, "resolv.conf.before") }
func (r ResolvConf) written() string { return filepath.Join(r.State, "resolv.conf.ours") }

// Upstream are the resolvers of the file as host:port, and the rest of it.
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
		case "search", "domain": // the last one counts
			search = fields[1:]
		}
	}
	return servers, search, nil
}

// With is the file with server as the resolver, and the cluster's search path before the one that is there.
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

// Set makes server the resolver, with the cluster's search path before the one that was there.
func (r ResolvConf) Set(server netip.Addr, search []string) error {
	// What a session before this one left is not what was there.
	if err := r.Restore(); err != nil {
		return err
	}
	before, err := os.ReadFile(r.Path)
	if err != nil && !os.IsNotExist(err) {
		return fmt.Errorf("read %s: %w", r.Path, err)
	}
	ours, err := r.With(server, search)
	if err != nil {
		return err
	}
	ours = header + ours
	if err := os.WriteFile(r.backup(), before, 0o600); err != nil {
		return fmt.Errorf("keep a copy of %s: %w", r.Path, err)
	}
	if err := os.WriteFile(r.written(), []byte(ours), 0o600); err != nil {
		return fmt.Errorf("note what is written to %s: %w", r.Path, err)
	}
	// In place and not by rename: the file is often a bind mount or a symbolic link.
	if err := os.WriteFile(r.Path, []byte(ours), 0o644); err != nil {
		_ = os.WriteFile(r.Path, before, 0o644) // what was there had room
		return fmt.Errorf("write %s: %w", r.Path, err)
	}
	return nil
}

// LeftBehind says whether the file is ours and leads to a resolver that this machine has no more. Anybody may ask.
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

// Restore puts back what was there, unless somebody else has written the file since. It does nothing when nothing was set.
func (r ResolvConf) Restore() error {
	before, err := os.ReadFile(r.backup())
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the copy of %s: %w", r.Path, err)
	}
	ours, _ := os.ReadFile(r.written())
	now, err := os.ReadFile(r.Path)
	if err == nil && bytes.Equal(now, ours) {
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
