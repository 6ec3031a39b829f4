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

// System is the laptop's own name resolution, which is told to ask the proxy.
type System interface {
	// Upstream are the resolvers besides the proxy as host:port, those that were there before or have come since.
	Upstream() ([]string, error)
	// Set makes server, which is reached over an interface, the resolver of the cluster's names at least. search are the suffixes to look
	// for short names with.
	Set(link string, server netip.Addr, search []string) error
	// Keep sets it again when somebody else has changed it, as happens when a laptop comes into another network.
	Keep() error
	// Restore undoes Set.
	Restore() error
}

// plain is a system whose programs read /etc/resolv.conf and nothing else.
type plain struct {
	ResolvConf

	mu     sync.Mutex // the file may be kept while the session ends
	server netip.Addr // none when nothing is set
	search []string
	before map[string][]byte // what was there, by what was written in its place
}

// Plain only reads and writes the file.
func Plain(file ResolvConf) System { return &plain{ResolvConf: file, before: map[string][]byte{}} }

func (p *plain) Upstream() ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	file := p.ResolvConf
	if p.untouched() {
		file.Path = p.backup()
	}
	servers, _, err := file.Upstream()
	return slices.DeleteFunc(servers, func(s string) bool { return s == net.JoinHostPort(p.server.String(), "53") }), err
}

func (p *plain) Set(_ string, server netip.Addr, search []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server, p.search = server, search
	return p.set()
}

func (p *plain) Keep() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.server.IsValid() || p.untouched() {
		return nil
	}
	if err := p.disown(); err != nil {
		return err
	}
	return p.set()
}

func (p *plain) Restore() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.server.IsValid() && !p.untouched() {
		if err := p.disown(); err != nil {
			return err
		}
	}
	p.server = netip.Addr{}
	return p.ResolvConf.Restore()
}

func (p *plain) set() error {
	if err := p.ResolvConf.Set(p.server, p.search); err != nil {
		return err
	}
	before, err := os.ReadFile(p.backup())
	if err != nil {
		return fmt.Errorf("read the copy of %s: %w", p.Path, err)
	}
	ours, err := os.ReadFile(p.written())
	if err != nil {
		return fmt.Errorf("read what was written to %s: %w", p.Path, err)
	}
	p.before[string(ours)] = before
	return nil
}

// disown takes out of the file what is the proxy's. A program that put back what it had found, as scripts of VPNs do, may have found that.
func (p *plain) disown() error {
	now, err := os.ReadFile(p.Path)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", p.Path, err)
	}
	others, ours := p.before[string(now)]
	if !ours {
		for line := range strings.Lines(string(now)) {
			if f := strings.Fields(line); line != header && (len(f) < 2 || f[0] != "nameserver" || f[1] != p.server.String()) {
				others = append(others, line...)
			}
		}
	}
	if bytes.Equal(now, others) {
		return nil
	}
	if err := os.WriteFile(p.Path, others, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", p.Path, err)
	}
	return nil
}

// untouched says whether the file is as it was set.
func (p *plain) untouched() bool {
	ours, err := os.ReadFile(p.written())
	if err != nil {
		return false
	}
	now, err := os.ReadFile(p.Path)
	return err == nil && bytes.Equal(now, ours)
}
