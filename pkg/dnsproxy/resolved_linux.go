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

// resolved is systemd-resolved, which detour configures over D-Bus (org.freedesktop.resolve1(5)).
// It drops the settings of an interface when the interface goes, so a crash leaves nothing behind.
type resolved struct {
	uplinks string // the file that lists the servers it asks
	link    int32  // index of the VIF; 0 before Set
	server  netip.Addr
}

// leadsToResolved reports whether programs that read the file ask systemd-resolved.
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

// Upstream returns the servers that systemd-resolved asks. The proxy must not ask systemd-resolved,
// because systemd-resolved asks the proxy.
func (r *resolved) Upstream() ([]string, error) {
	servers, _, err := ResolvConf{Path: r.uplinks}.Upstream()
	isProxy := func(s string) bool { a, err := netip.ParseAddrPort(s); return err == nil && a.Addr() == r.server }
	return slices.DeleteFunc(servers, isProxy), err
}

// domain is an argument of SetLinkDomains. A RouteOnly domain chooses the server and is not a
// suffix for short names.
type domain struct {
	Name      string
	RouteOnly bool
}

// address is an argument of SetLinkDNS.
type address struct {
	Family int32
	Bytes  []byte
}

// Set makes systemd-resolved ask the proxy for all names, because only the proxy knows which names
// are the cluster's.
func (r *resolved) Set(link string, server netip.Addr, search []string) error {
	i, err := net.InterfaceByName(link)
	if err != nil {
		return fmt.Errorf("find the interface %s: %w", link, err)
	}
	r.link, r.server = int32(i.Index), server //nolint:gosec // Linux has small indexes
	family := int32(unix.AF_INET)
	if server.Is6() {
		family = unix.AF_INET6
	}
	domains := []domain{{Name: ".", RouteOnly: true}}
	for _, s := range search {
		domains = append(domains, domain{Name: s})
	}
	for _, call := range []struct {
		method   string
		argument any
		required bool
	}{
		{method: "SetLinkDNS", argument: []address{{Family: family, Bytes: server.AsSlice()}}, required: true},
		{method: "SetLinkDomains", argument: domains, required: true},
		{method: "SetLinkDefaultRoute", argument: true},
		// The cluster's names are not signed, and no other host is on this link. An older
		// systemd-resolved does not know all of these methods.
		{method: "SetLinkDNSSEC", argument: "no"},
		{method: "SetLinkDNSOverTLS", argument: "no"},
		{method: "SetLinkLLMNR", argument: "no"},
		{method: "SetLinkMulticastDNS", argument: "no"},
	} {
		err := r.call(context.Background(), resolvedManager+call.method, r.link, call.argument)
		if err != nil && call.required {
			return fmt.Errorf("tell systemd-resolved of the cluster's names: %w", err)
		}
	}
	_ = r.call(context.Background(), resolvedManager+"FlushCaches")
	return nil
}

// Keep does nothing: no other program configures the interface.
func (r *resolved) Keep() error { return nil }

// Restore removes the settings of the interface and the answers that came over it.
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

// call opens a connection for each call: there are few calls, and hours between them.
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
