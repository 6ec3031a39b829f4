package dnsproxy

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

const (
	resolvedName      = "org.freedesktop.resolve1"
	resolvedManager   = "org.freedesktop.resolve1.Manager."
	resolvedPath      = "/org/freedesktop/resolve1"
	resolvedUplinks   = "/run/systemd/resolve/resolv.conf"
	resolvedTimeout   = 5 * time.Second
	resolvedStub      = "127.0.0.53"
	resolvedStubProxy = "127.0.0.54"
)

// resolved is systemd-resolved, which is told over D-Bus (org.freedesktop.resolve1(5)). It forgets what it was told of an interface when
// that goes, so that a crash leaves nothing.
type resolved struct {
	uplinks string // the file in which it says whom it asks itself
	link    int32
	server  netip.Addr
}

// leadsToResolved says whether the programs that read the file ask systemd-resolved.
func (r ResolvConf) leadsToResolved() bool {
	servers, _, err := r.Upstream()
	if err != nil || len(servers) == 0 {
		return false
	}
	return !slices.ContainsFunc(servers, func(s string) bool {
		host, _, err := net.SplitHostPort(s)
		return err != nil || host != resolvedStub && host != resolvedStubProxy
	})
}

func findResolved(ctx context.Context) (*resolved, error) {
	r := &resolved{uplinks: resolvedUplinks}
	if err := r.call(ctx, "org.freedesktop.DBus.Peer.Ping"); err != nil {
		return nil, fmt.Errorf("reach systemd-resolved: %w", err)
	}
	return r, nil
}

// Upstream are whom it asks itself: it must not be asked again, since it asks the proxy.
func (r *resolved) Upstream() ([]string, error) {
	servers, _, err := ResolvConf{Path: r.uplinks}.Upstream()
	ours := func(s string) bool { a, err := netip.ParseAddrPort(s); return err == nil && a.Addr() == r.server }
	return slices.DeleteFunc(servers, ours), err
}

// domain is a name and whether it is only for choosing the server, not to be tried behind short names.
type domain struct {
	Name      string
	RouteOnly bool
}

type address struct {
	Family int32
	Bytes  []byte
}

// Set makes the proxy the one that is asked first for all names, because which are the cluster's is seen only there.
func (r *resolved) Set(link string, server netip.Addr, search []string) error {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return fmt.Errorf("find the interface %s: %w", link, err)
	}
	r.link, r.server = int32(i.Index), server //nolint:gosec // Linux's are small
	family := int32(unix.AF_INET)
	if server.Is6() {
		family = unix.AF_INET6
	}
	domains := []domain{{".", true}}
	for _, s := range search {
		domains = append(domains, domain{s, false})
	}
	for _, call := range []struct {
		method   string
		argument any
		must     bool
	}{
		{"SetLinkDNS", []address{{family, server.AsSlice()}}, true},
		{"SetLinkDomains", domains, true},
		{"SetLinkDefaultRoute", true, false},
		// The cluster's names are not signed, and nobody else is on this link. Older ones do not know all of these.
		{"SetLinkDNSSEC", "no", false},
		{"SetLinkDNSOverTLS", "no", false},
		{"SetLinkLLMNR", "no", false},
		{"SetLinkMulticastDNS", "no", false},
	} {
		if err := r.call(context.Background(), resolvedManager+call.method, r.link, call.argument); err != nil && call.must {
			return fmt.Errorf("tell systemd-resolved of the cluster's names: %w", err)
		}
	}
	_ = r.call(context.Background(), resolvedManager+"FlushCaches")
	return nil
}

// Keep has nothing to do: nobody else configures the interface.
func (r *resolved) Keep() error { return nil }

// Restore makes it forget the interface, and what it learned over it.
func (r *resolved) Restore() error {
	if r.link == 0 {
		return nil
	}
	err := r.call(context.Background(), resolvedManager+"RevertLink", r.link)
	_ = r.call(context.Background(), resolvedManager+"FlushCaches")
	if err != nil {
		return fmt.Errorf("tell systemd-resolved that the cluster's names are gone: %w", err)
	}
	return nil
}

// call has a connection of its own each time: there are few calls, and hours between them.
func (r *resolved) call(ctx context.Context, method string, arguments ...any) error {
	ctx, cancel := context.WithTimeout(ctx, resolvedTimeout)
	defer cancel()
	bus, err := dbus.ConnectSystemBus(dbus.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("reach the system's D-Bus: %w", err)
	}
	defer bus.Close()
	return bus.Object(resolvedName, resolvedPath).CallWithContext(ctx, method, 0, arguments...).Err
}
