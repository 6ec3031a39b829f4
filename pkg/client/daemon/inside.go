package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/rootless"
)

// helperCommand makes this very program the helper that holds the namespaces: see rootless.RunHelper.
var helperCommand = []string{"/proc/self/exe", rootless.HelperCommand}

// nameServices are sockets of the host over which the C library would ask the host for names and not read /etc/resolv.conf. A socket
// that cannot be connected to is to the C library as if the service did not run.
var nameServices = []string{"/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve"}

// enter finds the place of the session's network: the laptop itself, or namespaces. Those of the session before are used again, because what
// runs in them cannot move to others.
func (s *session) enter(ctx context.Context) error {
	if !s.paths.Rootless {
		s.place = dnsproxy.Network{Listen: net.Listen, ListenPacket: net.ListenPacket, Dial: new(net.Dialer).DialContext}
		return nil
	}
	if s.inside != nil && s.inside.Gone() {
		s.closeInside()
		s.inside = nil
	}
	if s.inside == nil {
		inside, err := rootless.New(ctx, helperCommand, s.log)
		if err != nil {
			return err
		}
		s.inside = inside
		if err := s.ownNames(); err != nil {
			s.closeInside()
			s.inside = nil
			return err
		}
	}
	s.place = dnsproxy.Network{Listen: s.inside.Listen, ListenPacket: s.inside.ListenPacket, Dial: s.inside.DialContext}
	return nil
}

// closeInside ends the namespaces, which outlive their session. What still runs there stays without a network.
func (s *session) closeInside() {
	if s.inside == nil {
		return
	}
	if err := s.inside.Close(); err != nil {
		s.log.Warn("closing the namespaces failed", "err", err)
	}
	_ = os.Remove(s.paths.RootlessResolvConf())
}

// ownNames gives new namespaces a resolver configuration of their own, which is empty yet.
func (s *session) ownNames() error {
	path := s.paths.RootlessResolvConf()
	// A new file: what still runs in namespaces of before keeps its own.
	_ = os.Remove(path)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return fmt.Errorf("make the resolver configuration: %w", err)
	}
	if err := s.inside.Bind(path, s.paths.Resolver().Path); err != nil {
		return err
	}
	for _, socket := range nameServices {
		if _, err := os.Stat(socket); err != nil {
			continue
		}
		if err := s.inside.Bind("/dev/null", socket); err != nil {
			s.log.Warn("names may be looked up past the cluster's DNS", "by", socket, "err", err)
		}
	}
	return nil
}

// insideResolver tells the programs inside whom to ask. The file stays the one that they see.
func (s *session) insideResolver(files dnsproxy.ResolvConf, server netip.Addr, search []string) error {
	text, err := files.With(server, search)
	if err != nil {
		return err
	}
	path := s.paths.RootlessResolvConf()
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the resolver configuration: %w", err)
	}
	return nil
}
