package dnsproxy

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
)

// System is the name resolution of the laptop. It is configured to ask the proxy. Its methods may
// be called by several goroutines.
type System interface {
	// Upstream returns the resolvers of the laptop except the proxy, as host:port: those from
	// before Set and those that other programs have added since.
	Upstream() ([]string, error)
	// Set makes server the resolver of the cluster's names at least. The server is reached over the
	// interface link. search are the suffixes for short names.
	Set(link string, server netip.Addr, search []string) error
	// Keep repeats Set when another program has changed the settings, as happens when a laptop
	// joins another network.
	Keep() error
	// Restore undoes Set. Without Set it does nothing.
	Restore() error
}

// plain is a System whose programs read only /etc/resolv.conf.
type plain struct {
	ResolvConf

	// mu guards the fields below and the file: Keep may run while the session ends.
	mu     sync.Mutex
	server netip.Addr // invalid before Set and after Restore
	search []string
	before map[string][]byte // the text that Set replaced, by the text that it wrote
}

// Plain returns a System that reads and writes only the file.
func Plain(file ResolvConf) System { return &plain{ResolvConf: file, before: map[string][]byte{}} }

func (p *plain) Upstream() ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	file := p.ResolvConf
	if p.unchangedLocked() {
		file.Path = p.backup()
	}
	servers, _, err := file.Upstream()
	own := net.JoinHostPort(p.server.String(), "53")
	return slices.DeleteFunc(servers, func(s string) bool { return s == own }), err
}

func (p *plain) Set(_ string, server netip.Addr, search []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server, p.search = server, search
	return p.setLocked()
}

func (p *plain) Keep() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.server.IsValid() || p.unchangedLocked() {
		return nil
	}
	if err := p.removeOwnLocked(); err != nil {
		return err
	}
	return p.setLocked()
}

func (p *plain) Restore() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server.IsValid() && !p.unchangedLocked() {
		if err := p.removeOwnLocked(); err != nil {
			return err
		}
	}
	p.server = netip.Addr{}
	return p.ResolvConf.Restore()
}

func (p *plain) setLocked() error {
	if err := p.ResolvConf.Set(p.server, p.search); err != nil {
		return err
	}
	before, err := os.ReadFile(p.backup())
	if err != nil {
		return fmt.Errorf("read the copy of %s: %w", p.Path, err)
	}
	text, err := os.ReadFile(p.written())
	if err != nil {
		return fmt.Errorf("read the note of the new text of %s: %w", p.Path, err)
	}
	p.before[string(text)] = before
	return nil
}

// removeOwnLocked removes the proxy from the file. A program that restores the text that it once
// found, as scripts of VPNs do, may have found the proxy's.
func (p *plain) removeOwnLocked() error {
	now, err := os.ReadFile(p.Path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", p.Path, err)
	}
	rest, own := p.before[string(now)]
	if !own {
		for line := range strings.Lines(string(now)) {
			f := strings.Fields(line)
			isProxy := len(f) > 1 && f[0] == "nameserver" && f[1] == p.server.String()
			if line != header && !isProxy {
				rest = append(rest, line...)
			}
		}
	}
	if bytes.Equal(now, rest) {
		return nil
	}
	if err := os.WriteFile(p.Path, rest, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", p.Path, err)
	}
	return nil
}

// unchangedLocked reports whether the file still has the text that Set wrote.
func (p *plain) unchangedLocked() bool {
	text, err := os.ReadFile(p.written())
	if err != nil {
		return false
	}
	now, err := os.ReadFile(p.Path)
	return err == nil && bytes.Equal(now, text)
}
