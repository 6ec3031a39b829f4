package network

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/rootless"
)

// helperCommand makes this very program the helper that holds the namespaces: see
// rootless.RunHelper.
var helperCommand = []string{"/proc/self/exe", rootless.HelperCommand}

// nameServices are sockets of the host at which the C library would ask the host for names instead
// of reading /etc/resolv.conf. The C library treats a socket that refuses connections like a
// service that does not run.
var nameServices = []string{"/run/nscd/socket", "/run/systemd/resolve/io.systemd.Resolve"}

// Namespaces are those of rootless mode. They outlive a network: processes that run in them cannot
// move to others. A nil *Namespaces stands for the laptop itself.
type Namespaces struct {
	*rootless.Namespace
	paths ipc.Paths
	log   *slog.Logger
}

// NewNamespaces makes namespaces with a resolver configuration of their own, which is empty at
// first. The caller ends them with Close. After an error nothing is left of them.
func NewNamespaces(ctx context.Context, paths ipc.Paths, log *slog.Logger) (*Namespaces, error) {
	namespace, err := rootless.New(ctx, helperCommand, log)
	if err != nil {
		return nil, err
	}
	n := &Namespaces{Namespace: namespace, paths: paths, log: log}
	if err := n.bindResolver(); err != nil {
		n.Close()
		return nil, err
	}
	return n, nil
}

// Close ends the namespaces. Processes that still run in them remain without a network.
func (n *Namespaces) Close() {
	if n == nil {
		return
	}
	if err := n.Namespace.Close(); err != nil {
		n.log.Warn("closing the namespaces failed", "err", err)
	}
	_ = os.Remove(n.paths.RootlessResolvConf())
}

// bindResolver puts an empty file over /etc/resolv.conf in the namespaces.
func (n *Namespaces) bindResolver() error {
	path := n.paths.RootlessResolvConf()
	// A new file: processes in earlier namespaces keep theirs.
	_ = os.Remove(path)
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		return fmt.Errorf("make the resolver configuration: %w", err)
	}
	if err := n.Bind(path, n.paths.Resolver().Path); err != nil {
		return err
	}
	for _, socket := range nameServices {
		if _, err := os.Stat(socket); err != nil {
			continue
		}
		if err := n.Bind("/dev/null", socket); err != nil {
			n.log.Warn("names may be resolved without the cluster's DNS", "path", socket, "err", err)
		}
	}
	return nil
}

// setResolver writes the resolver configuration of the namespaces. The file stays the same one, so
// that running processes see the change.
func (n *Namespaces) setResolver(files dnsproxy.ResolvConf, server netip.Addr, search []string) error {
	text, err := files.With(server, search)
	if err != nil {
		return err
	}
	path := n.paths.RootlessResolvConf()
	if old, err := os.ReadFile(path); err == nil && string(old) == text {
		return nil
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the resolver configuration: %w", err)
	}
	return nil
}

// place returns where sockets are opened.
func (n *Namespaces) place() dnsproxy.Network {
	if n == nil {
		return dnsproxy.Network{Listen: net.Listen, ListenPacket: net.ListenPacket, Dial: new(net.Dialer).DialContext}
	}
	return dnsproxy.Network{Listen: n.Listen, ListenPacket: n.ListenPacket, Dial: n.DialContext}
}
