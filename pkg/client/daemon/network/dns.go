package network

import (
	"context"
	"net/netip"

	"github.com/detour-dev/detour/pkg/client/svcwatch"
	"github.com/detour-dev/detour/pkg/dnsproxy"
)

// startDNS starts the DNS proxy and makes it the resolver of the laptop, or of the namespaces.
func (n *Network) startDNS(ctx context.Context) error {
	c, files := n.config, n.config.Paths.Resolver()
	if n.system = dnsproxy.Plain(files); c.Namespaces == nil {
		// The connection to systemd-resolved lives as long as its context: longer than this call.
		n.system = dnsproxy.FindSystem(context.WithoutCancel(ctx), files, c.Log)
	}
	upstream, err := n.system.Upstream()
	if err != nil {
		return err
	}
	var servers []string
	for _, text := range c.Status.DNS.Servers {
		if ip, err := netip.ParseAddr(text); err == nil {
			servers = append(servers, netip.AddrPortFrom(n.plan.Remap.Seen(ip), 53).String())
		}
	}
	if len(servers) == 0 {
		c.Log.Warn("the cluster's DNS was not found: names of services do not resolve")
		if c.Namespaces == nil {
			return nil
		}
		// The namespaces reach the laptop's resolvers only through the proxy.
	}
	domain := c.Status.DNS.Domain
	names, err := svcwatch.Watch(c.Cluster, svcwatch.Config{
		Namespace: c.Namespace, Domain: domain, Alive: n.vif.Alive, Log: c.Log,
	})
	if err != nil {
		return err
	}
	n.onClose(names.Close)
	listen := n.addresses[0]
	proxy, err := dnsproxy.Start(dnsproxy.Config{
		Listen: netip.AddrPortFrom(listen, 53), Network: n.place, Cluster: servers, Domain: domain,
		Namespace: c.Namespace,
		Upstream:  upstream, Names: names, Alive: n.vif.Alive, Rules: c.Overrides.Names, Log: c.Log,
	})
	if err != nil {
		return err
	}
	n.dns = proxy
	proxy.SetNetworks(n.plan.Routes, n.plan.Remap)
	n.onClose(func() {
		if err := proxy.Close(); err != nil {
			c.Log.Debug("closing the DNS proxy failed", "err", err)
		}
	})
	search := []string{c.Namespace + ".svc." + domain, "svc." + domain, domain}
	if c.Namespaces != nil {
		return c.Namespaces.setResolver(files, listen, search)
	}
	// Registered before Set, which may fail half-way.
	n.onClose(func() {
		if err := n.system.Restore(); err != nil {
			c.Log.Warn("restoring the resolver failed", "err", err)
		}
	})
	return n.system.Set(n.vif.Name(), listen, search)
}

// FollowResolvers learns the laptop's resolvers again, because the laptop may have joined another
// network.
func (n *Network) FollowResolvers() {
	if n.dns == nil {
		return
	}
	if err := n.system.Keep(); err != nil {
		n.config.Log.Warn("setting the resolver again failed", "err", err)
	}
	if all, err := n.system.Upstream(); err == nil && len(all) > 0 {
		n.dns.SetUpstream(all)
	}
}
