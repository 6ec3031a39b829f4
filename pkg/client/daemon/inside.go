package daemon

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/vif"
)

// holdCommand makes this very program the holder of the namespaces: see vif.Hold.
var holdCommand = []string{"/proc/self/exe", "hold"}

// nameServices are sockets of the host over which the C library would ask the host for names and not read /etc/resolv.conf. A socket
// that cannot be connected to is to the C library as if the service did not run.
var nameServices = []string{"/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve"}

// enter finds the place of the session's network: the laptop itself, or namespaces that are made for it.
func (s *session) enter(ctx context.Context) error {
	if !s.paths.Rootless {
		s.place = dnsproxy.Network{Listen: net.Listen, ListenPacket: net.ListenPacket, Dial: new(net.Dialer).DialContext}
		return nil
	}
	inside, err := vif.NewNamespace(ctx, holdCommand, s.log)
	if err != nil {
		return err
	}
	s.inside = inside
	s.place = dnsproxy.Network{Listen: inside.Listen, ListenPacket: inside.ListenPacket, Dial: inside.DialContext}
	s.cleanup = append(s.cleanup, func(context.Context) {
		if err := inside.Close(); err != nil {
			s.log.Warn("closing the namespaces failed", "err", err)
		}
	})
	return nil
}

// insideResolver gives the namespaces a resolver configuration of their own.
func (s *session) insideResolver(files dnsproxy.ResolvConf, server netip.Addr, search []string) error {
	text, err := files.With(server, search)
	if err != nil {
		return err
	}
	path := s.paths.insideResolver()
	// A new file: what still runs in the namespaces of a session before keeps its own.
	_ = os.Remove(path)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the resolver configuration: %w", err)
	}
	s.cleanup = append(s.cleanup, func(context.Context) { _ = os.Remove(path) })
	if err := s.inside.Bind(path, files.Path); err != nil {
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
