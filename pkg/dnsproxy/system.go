package dnsproxy

import (
	"bytes"
	"net/netip"
	"os"
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
}

// Plain only reads and writes the file.
func Plain(file ResolvConf) System { return &plain{ResolvConf: file} }

func (p *plain) Upstream() ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	file := p.ResolvConf
	if p.untouched() {
		file.Path = p.backup()
	}
	servers, _, err := file.Upstream()
	return servers, err
}

func (p *plain) Set(_ string, server netip.Addr, search []string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server, p.search = server, search
	return p.ResolvConf.Set(server, search)
}

func (p *plain) Keep() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.server.IsValid() || p.untouched() {
		return nil
	}
	return p.ResolvConf.Set(p.server, p.search)
}

func (p *plain) Restore() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.server = netip.Addr{}
	return p.ResolvConf.Restore()
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
