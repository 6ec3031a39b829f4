package daemon

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/version"
	"github.com/detour-dev/detour/pkg/vif"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// statusTimeout is how long a status waits for the cluster.
const statusTimeout = time.Second

func (s *session) status(ctx context.Context) *daemonv1.StatusResponse {
	ended := s.isEnded()
	st := s.object.Status
	pid, id := 0, ""
	if s.inside != nil && !ended {
		pid, id = s.inside.PID(), s.inside.ID()
	}
	r := &daemonv1.StatusResponse{
		Connected: !ended, TunnelUp: !ended && s.vif.Alive(), Context: s.context, Server: s.server, Namespace: s.namespace, Session: s.object.Name,
		User: s.object.Spec.User, Host: s.object.Spec.Host, Addresses: st.Addresses, Subnets: st.Subnets, Interface: s.vif.Name(),
		DnsServers: st.DNS.Servers, ClusterDomain: st.DNS.Domain, ClientVersion: version.Version, ManagerVersion: st.ManagerVersion, SinceUnix: s.since.Unix(),
		Rootless: s.paths.Rootless, NamespacePid: int32(pid), NamespaceId: id, NetworkOverrides: s.request.NetworkOverrides,
	}
	path := s.vif.Path()
	if r.Transport, r.TransportAddress = path.Transport, path.Address; r.Transport != "" {
		r.TransportSinceUnix = path.Since.Unix()
	} else {
		r.TunnelUp = false
	}
	if r.TunnelUp && s.hub.IsValid() {
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if rtt, err := vif.RTT(ctx, s.place.Dial, s.hub); err == nil {
			r.RttSeconds = rtt.Seconds()
		}
	}
	if !r.TunnelUp {
		r.Problem = "the tunnel is down, a new one is being opened"
		if err := s.vif.Problem(); err != nil {
			r.Problem += ": " + err.Error()
		}
	}
	unread := s.readIntercepts(ctx)
	s.mu.Lock()
	defer s.mu.Unlock()
	if problem := cmp.Or(s.problem, s.refused, s.unreached); problem != nil {
		r.Problem = problem.Error()
	}
	if silent(unread) {
		r.Problem = strings.TrimPrefix(r.Problem+"; the API server does not answer, the intercepts may stand otherwise by now", "; ")
	}
	for _, p := range s.networks.Remap {
		r.Mapped = append(r.Mapped, p.String())
	}
	for _, l := range s.intercepts {
		r.Intercepts = append(r.Intercepts, describe(&l.object))
	}
	for _, w := range s.wanted {
		r.Intercepts = append(r.Intercepts, w.describe())
	}
	slices.SortFunc(r.Intercepts, func(a, b *daemonv1.Intercept) int { return strings.Compare(a.Name, b.Name) })
	return r
}

// readIntercepts brings the intercepts up to date with the cluster, as far as that answers soon.
func (s *session) readIntercepts(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, statusTimeout)
	defer done()
	s.mu.Lock()
	var names []string
	if !s.ended {
		names = slices.Collect(maps.Keys(s.intercepts))
	}
	s.mu.Unlock()
	failures := make([]error, len(names))
	var all sync.WaitGroup
	for n, name := range names {
		all.Go(func() {
			var i detour.Intercept
			if failures[n] = s.kube.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: name}, &i); failures[n] != nil {
				return
			}
			s.mu.Lock()
			defer s.mu.Unlock()
			if l := s.intercepts[name]; l != nil {
				l.object = i
			}
		})
	}
	all.Wait()
	if n := slices.IndexFunc(failures, silent); n >= 0 {
		return failures[n]
	}
	return nil
}
