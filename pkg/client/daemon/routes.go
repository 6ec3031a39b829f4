package daemon

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

// lingering is how long the interface of a daemon that was killed may take to go.
const lingering = 2 * time.Second

// plan decides which networks lead to the VIF, and refuses those that the laptop has a use for. Nothing is changed before.
func (s *session) plan(ctx context.Context) (routes.Plan, error) {
	for deadline := time.Now().Add(lingering); ; {
		plan, collisions, err := s.planFor(s.object.Status, "")
		if err != nil || len(collisions) == 0 {
			return plan, err
		}
		ours := func(c routes.Collision) bool { return strings.HasPrefix(c.Host.Interface, "detour") }
		if !slices.ContainsFunc(collisions, ours) || time.Now().After(deadline) {
			return plan, routes.Explain(collisions)
		}
		if err := sleep(ctx, lingering/20); err != nil {
			return plan, err
		}
	}
}

// planFor decides for a state of the cluster, with or without an interface that is there already.
func (s *session) planFor(status detour.SessionStatus, own string) (routes.Plan, []routes.Collision, error) {
	subnets, err := parseSubnets(status.Subnets)
	if err != nil {
		return routes.Plan{}, nil, err
	}
	cluster := routes.Cluster{Subnets: subnets, Server: s.apiServer}
	for _, text := range status.NodeAddresses {
		if a, err := netip.ParseAddr(text); err == nil {
			cluster.Nodes = append(cluster.Nodes, a)
		}
	}
	var host []routes.HostNetwork
	if s.inside == nil { // namespaces have no networks but ours
		if host, err = routes.Host(own); err != nil {
			return routes.Plan{}, nil, err
		}
	}
	return s.routing.Plan(cluster, host)
}

// follow brings routes and DNS up to date with the cluster. A network that collides with one of the laptop's now stays out.
func (s *session) follow(status detour.SessionStatus) error {
	plan, collisions, err := s.planFor(status, s.vif.Name())
	if err != nil {
		return err
	}
	s.log.Info("the cluster's networks changed", "subnets", status.Subnets)
	if err := s.vif.SetRoutes(plan.Routes, plan.Remap); err != nil {
		return err
	}
	if s.dns != nil {
		s.dns.SetNetworks(plan.Routes, plan.Remap)
	}
	var missing error
	if len(collisions) > 0 {
		missing = fmt.Errorf("a part of the cluster cannot be reached: %w", routes.Explain(collisions))
		s.log.Warn("a network of the cluster collides with one of the laptop", "err", missing)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.object.Status.Subnets, s.object.Status.NodeAddresses = status.Subnets, status.NodeAddresses
	s.networks, s.unreached = plan, missing
	return nil
}

// wayToServer lists the addresses of the API server, or of the HTTP proxy to it. What cannot be resolved is not dialled from here.
func wayToServer(ctx context.Context, config *rest.Config) ([]netip.Addr, error) {
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
