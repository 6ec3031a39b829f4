package network

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/client-go/rest"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/routes"
)

const (
	// lingerTimeout is how long the interface of a killed daemon may take to disappear.
	lingerTimeout = 2 * time.Second
	lingerPause   = lingerTimeout / 20
)

// planRoutes decides which networks lead to the VIF. It fails if the laptop itself uses one of
// them. Nothing of the laptop is changed.
func (n *Network) planRoutes(ctx context.Context) error {
	for deadline := time.Now().Add(lingerTimeout); ; {
		plan, collisions, err := n.planFor(n.config.Status, "")
		if err != nil {
			return err
		}
		if len(collisions) == 0 {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.plan = plan
			return nil
		}
		ours := func(c routes.Collision) bool { return strings.HasPrefix(c.Host.Interface, "detour") }
		if !slices.ContainsFunc(collisions, ours) || time.Now().After(deadline) {
			return routes.Explain(collisions)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(lingerPause):
		}
	}
}

// planFor plans for a state of the cluster. own is the name of the session's interface, if it
// exists.
func (n *Network) planFor(status detour.SessionStatus, own string) (routes.Plan, []routes.Collision, error) {
	subnets, err := parseSubnets(status.Subnets)
	if err != nil {
		return routes.Plan{}, nil, err
	}
	cluster := routes.Cluster{Subnets: subnets, Server: n.apiServer}
	for _, text := range status.NodeAddresses {
		if a, err := netip.ParseAddr(text); err == nil {
			cluster.Nodes = append(cluster.Nodes, a)
		}
	}
	var host []routes.HostNetwork
	if n.config.Namespaces == nil { // namespaces have no networks but the VIF's
		if host, err = routes.Host(own); err != nil {
			return routes.Plan{}, nil, err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.overrides.Plan(cluster, host)
}

func parseSubnets(texts []string) ([]netip.Prefix, error) {
	var all []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("the cluster's networks: %w", err)
		}
		all = append(all, p)
	}
	return all, nil
}

// Follow updates routes and DNS after the cluster's networks have changed. A network that now
// collides with one of the laptop's is left out, and Snapshot reports it.
func (n *Network) Follow(status detour.SessionStatus) error {
	plan, collisions, err := n.planFor(status, n.vif.Name())
	if err != nil {
		return err
	}
	n.config.Log.Info("the cluster's networks have changed", "subnets", status.Subnets)
	if err := n.vif.SetRoutes(plan.Routes, plan.Remap); err != nil {
		return err
	}
	if n.dns != nil {
		n.dns.SetNetworks(plan.Routes, plan.Remap)
	}
	var unreachable error
	if len(collisions) > 0 {
		unreachable = fmt.Errorf("a part of the cluster cannot be reached: %w", routes.Explain(collisions))
		n.config.Log.Warn("a network of the cluster collides with one of the laptop", "err", unreachable)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.plan, n.unreachable = plan, unreachable
	return nil
}

// serverAddresses lists the addresses of the API server, or of the HTTP proxy to it. A host name
// that does not resolve here is not dialled from here, so it is left out.
func serverAddresses(ctx context.Context, config *rest.Config) ([]netip.Addr, error) {
	u, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("the API server's address: %w", err)
	}
	hosts := []*url.URL{u}
	if config.Proxy != nil {
		if via, err := config.Proxy(&http.Request{URL: u}); err == nil && via != nil {
			hosts = append(hosts, via)
		}
	}
	var all []netip.Addr
	for _, h := range hosts {
		found, _ := net.DefaultResolver.LookupNetIP(ctx, "ip", h.Hostname())
		for _, a := range found {
			all = append(all, a.Unmap())
		}
	}
	return all, nil
}
