package daemon

import (
	"cmp"
	"context"
	"strings"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/version"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// statusTimeout is how long a status waits for the API server.
const statusTimeout = time.Second

// status describes the session from the snapshots of its parts. It first brings them up to date, as
// far as the API server answers soon.
func (s *session) status(ctx context.Context) *daemonv1.StatusResponse {
	ended := s.isEnded()
	var rtt time.Duration
	var readErr error
	if !ended {
		var asking sync.WaitGroup
		asking.Go(func() { readErr = s.readCluster(ctx) })
		if s.network.Alive() {
			rtt = s.network.RTT(ctx)
		}
		asking.Wait()
	}
	object, net := s.record.get(), s.network.Snapshot()
	st := object.Status
	r := &daemonv1.StatusResponse{
		Connected: !ended, TunnelUp: !ended && net.Alive && net.Path.Transport != "", Context: s.request.Context,
		Server: s.server, Namespace: s.request.Namespace, Session: object.Name, User: object.Spec.User,
		Host: object.Spec.Host, Addresses: st.Addresses, Subnets: st.Subnets, Interface: net.Interface,
		DnsServers: st.DNS.Servers, ClusterDomain: st.DNS.Domain, ClientVersion: version.Version,
		ManagerVersion: st.ManagerVersion, SinceUnix: s.since.Unix(), Rootless: s.paths.Rootless,
		NetworkOverrides: s.request.NetworkOverrides, Mapped: net.Mapped, Intercepts: s.intercepts.Snapshot(),
		Transport: net.Path.Transport, TransportAddress: net.Path.Address,
	}
	if s.namespaces != nil && !ended {
		r.NamespacePid, r.NamespaceId = int32(s.namespaces.PID()), s.namespaces.ID()
	}
	if r.Transport != "" {
		r.TransportSinceUnix = net.Path.Since.Unix()
	}
	if r.TunnelUp {
		r.RttSeconds = rtt.Seconds()
	} else {
		r.Problem = "the tunnel is down, a new one is being opened"
		if net.TunnelProblem != nil {
			r.Problem += ": " + net.TunnelProblem.Error()
		}
	}
	if problem := cmp.Or(s.health.snapshot(), net.Unreachable); problem != nil {
		r.Problem = problem.Error()
	}
	if cluster.IsSilent(readErr) && len(r.Intercepts) > 0 {
		const outdated = "the API server does not answer: the state of the intercepts may be outdated"
		r.Problem = strings.TrimPrefix(r.Problem+"; "+outdated, "; ")
	}
	return r
}

// readCluster checks that the API server answers, and reads the intercepts.
func (s *session) readCluster(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, statusTimeout)
	defer done()
	var reading sync.WaitGroup
	var probeErr error
	reading.Go(func() { probeErr = s.probe(ctx) })
	err := s.intercepts.Refresh(ctx)
	reading.Wait()
	if cluster.IsSilent(probeErr) {
		return probeErr
	}
	return err
}

// probe asks the API server for the Session object, to learn whether it answers and accepts the
// session's credentials.
func (s *session) probe(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, upkeepInterval)
	defer done()
	_, err := s.watch.ReadSession(ctx)
	s.health.observeCredentials(err, s.server)
	return err
}
