package network

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"github.com/detour-dev/detour/pkg/client/tunnel"
)

const resolveTimeout = 2 * time.Second

// OfferDirect gives the tunnel the endpoints at which the traffic-manager accepts UDP, for the path
// direct-udp. It leaves out an endpoint to which a route leads through the VIF: the tunnel would
// reach it through itself.
func (n *Network) OfferDirect(ctx context.Context, endpoints []string) {
	if n.config.Transport != "" && n.config.Transport != tunnel.Auto {
		return
	}
	n.mu.Lock()
	routes := n.plan.Routes
	n.mu.Unlock()
	n.vif.SetDirect(directAddresses(endpoints, routes, func(host string) []netip.Addr { return n.lookUp(ctx, host) }))
}

// directAddresses resolves endpoints of the form HOST:PORT and leaves out those that routes cover.
func directAddresses(
	endpoints []string, routes []netip.Prefix, lookUp func(host string) []netip.Addr,
) []netip.AddrPort {
	var all []netip.AddrPort
	for _, e := range endpoints {
		host, port, err := net.SplitHostPort(e)
		if err != nil {
			continue
		}
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			continue
		}
		for _, a := range lookUp(host) {
			to := netip.AddrPortFrom(a, uint16(number))
			covered := slices.ContainsFunc(routes, func(p netip.Prefix) bool { return p.Contains(a) })
			if !covered && !slices.Contains(all, to) {
				all = append(all, to)
			}
		}
	}
	return all
}

// lookUp returns the addresses of a load balancer, which may have only a name.
func (n *Network) lookUp(ctx context.Context, host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		n.config.Log.Debug("an address of the traffic-manager does not resolve here", "host", host, "err", err)
	}
	for i, a := range found {
		found[i] = a.Unmap()
	}
	return found
}
