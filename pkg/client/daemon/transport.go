package daemon

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/tunnel"
)

const resolveTimeout = 2 * time.Second

// offerDirect tells the tunnel where the traffic-manager takes datagrams. One to which a route leads through the VIF
// would be reached through the tunnel itself.
func (s *session) offerDirect(ctx context.Context, endpoints []string) {
	if s.request.Transport != "" && s.request.Transport != tunnel.Auto {
		return
	}
	s.mu.Lock()
	routes := s.networks.Routes
	s.mu.Unlock()
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
		for _, a := range s.lookUp(ctx, host) {
			to := netip.AddrPortFrom(a, uint16(number))
			if !slices.ContainsFunc(routes, func(p netip.Prefix) bool { return p.Contains(a) }) && !slices.Contains(all, to) {
				all = append(all, to)
			}
		}
	}
	s.vif.SetDirect(all)
}

// managerPod asks who looks after the session now: a traffic-manager that is new has another name.
func (s *session) managerPod(ctx context.Context) (string, error) {
	var fresh detour.Session
	if err := s.kube.Get(ctx, client.ObjectKeyFromObject(&s.object), &fresh); err != nil {
		return "", err
	}
	if fresh.Status.ManagerPod == "" {
		return "", errors.New("the traffic-manager has not said its name yet")
	}
	return fresh.Status.ManagerPod, nil
}

// lookUp finds the addresses of a load balancer that has only a name.
func (s *session) lookUp(ctx context.Context, host string) []netip.Addr {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		s.log.Debug("a direct address of the traffic-manager is not known here", "host", host, "err", err)
	}
	for i, a := range found {
		found[i] = a.Unmap()
	}
	return found
}
