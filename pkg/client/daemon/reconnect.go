package daemon

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/intercepts"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

const (
	// upkeepInterval is how often supervise inspects a session without a notice of a change.
	// It bounds how long the loss of a session goes unnoticed while there is no watch.
	upkeepInterval = 3 * time.Second
	// verifyInterval is how often the Session object is read although a watch follows it. A watch
	// does not end when the credentials expire.
	verifyInterval   = 30 * time.Second
	reconnectTimeout = 2 * time.Minute
)

// errOtherManager ends a session whose traffic-manager was installed anew: it does not know the
// laptop's tunnel.
var errOtherManager = errors.New("the traffic-manager has another key or other addresses for laptops")

// errEnded ends a session that somebody has deleted in the cluster.
var errEnded = errors.New("the session was deleted in the cluster: run `detour connect` to connect again")

// supervise follows the session's object until ctx ends.
//
// The traffic-manager deletes a session whose laptop was silent for too long, because it slept or
// had no network. Such a session is made again, with its intercepts; so is that of a
// traffic-manager that was replaced. A session that is deleted while the laptop is there was
// deleted by a person: it ends, and the laptop is restored.
func (s *Server) supervise(ctx context.Context) {
	tick := time.NewTicker(upkeepInterval)
	defer tick.Stop()
	var lost *session // that is being made again
	var sessionChanged, interceptsChanged <-chan struct{}
	for {
		upkeep := false
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			upkeep = true
		case <-sessionChanged:
		case <-interceptsChanged:
		}
		now := s.get()
		if now == nil {
			lost, sessionChanged, interceptsChanged = nil, nil, nil
			continue
		}
		if now == lost && !upkeep {
			sessionChanged, interceptsChanged = nil, nil
			continue // the next tick tries again
		}
		sessionChanged, interceptsChanged = now.watch.Changed() // before the objects are read
		if now != lost {
			lost = s.inspect(ctx, now, upkeep)
		}
		if lost != nil && s.reconnect(ctx, lost) {
			lost = nil
		}
	}
}

// inspect compares a session with the cluster. It returns the session if it must be made again.
func (s *Server) inspect(ctx context.Context, now *session, upkeep bool) (lost *session) {
	name := now.record.get().Name
	if now.namespaces != nil && now.namespaces.Gone() && !now.isEnded() {
		now.log.Warn("the helper that holds the namespaces has ended: making the session again", "session", name)
		return now
	}
	if upkeep && !now.isEnded() {
		now.network.FollowResolvers()
	}
	gone, err := now.refresh(ctx)
	if errors.Is(err, errOtherManager) {
		now.log.Info("the traffic-manager was replaced: making the session again", "session", name, "err", err)
		return now
	}
	if upkeep && err == nil && !gone && !now.isEnded() {
		now.intercepts.Restore(ctx)
	}
	if !gone {
		return nil
	}
	if !gaveUp(now.health.silentSince(), time.Now(), now.record.get().Status.GivenUpAfter.Duration) {
		now.log.Info("the session was deleted in the cluster", "session", name)
		s.end(ctx, now, nil)
		now.health.setProblem(errEnded)
		return nil
	}
	now.log.Info("the traffic-manager gave the session up: making it again", "session", name)
	return now
}

// gaveUp reports whether the traffic-manager can have given up a session that it last heard of at
// received. That the tunnel receives messages now proves nothing: a laptop that wakes up finds
// messages in its sockets that were sent before.
func gaveUp(received, now time.Time, after time.Duration) bool {
	// Wall clock time: the monotonic clock stands still while the laptop sleeps.
	return now.Round(0).Sub(received.Round(0)) >= after
}

// end closes a session. What remains of it says why it ended, and has the intercepts for the
// session that is made in its place, by reconnect or by a user who does not wait for that.
func (s *Server) end(ctx context.Context, now *session, handOver []*intercepts.Pending) {
	s.changing.Lock()
	defer s.changing.Unlock()
	if now.isEnded() {
		return
	}
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer done()
	if err := now.close(ending); err != nil {
		now.log.Warn("the session may still be in the cluster", "err", err)
	}
	now.intercepts.TakeOver(handOver)
}

// reconnect makes a session again. It reports whether nothing is left to try.
func (s *Server) reconnect(ctx context.Context, old *session) bool {
	s.end(ctx, old, old.intercepts.All())
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.get() != old {
		return true // a user has disconnected or connected meanwhile
	}
	trying, done := context.WithTimeout(ctx, reconnectTimeout)
	defer done()
	made, err := connect(trying, old.request, old, s.paths, s.log, func(string) {})
	if err != nil {
		old.log.Warn("making the session again failed", "err", err)
		old.health.setProblem(err)
		return false
	}
	made.intercepts.TakeOver(old.intercepts.All())
	s.put(made)
	made.intercepts.Restore(trying)
	return true
}

// renews reports whether a request brings other credentials in place of expired ones. It reads the
// Session object to learn whether the session's credentials are still accepted.
func (s *session) renews(ctx context.Context, req *daemonv1.ConnectRequest) bool {
	if bytes.Equal(req.Kubeconfig, s.request.Kubeconfig) {
		return false
	}
	s.probe(ctx)
	return s.health.credentialsExpired()
}

// renewLocked makes a session as it was, with other credentials. The caller holds s.changing.
func (s *Server) renewLocked(
	ctx context.Context, old *session, kubeconfig []byte, progress func(string),
) (*session, error) {
	request, pending := proto.CloneOf(old.request), old.intercepts.All()
	request.Kubeconfig = kubeconfig
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer done()
	_ = old.close(ending) // the API server refuses the old credentials
	old.intercepts.TakeOver(pending)
	made, err := connect(ctx, request, old, s.paths, s.log, progress)
	if err != nil {
		old.health.setProblem(err)
		return nil, err
	}
	made.intercepts.TakeOver(pending)
	s.put(made)
	made.intercepts.Restore(ctx)
	return made, nil
}

// refresh reads the session's object and follows its changes. It reports whether the object is
// gone.
func (s *session) refresh(ctx context.Context) (gone bool, err error) {
	if s.isEnded() {
		return false, nil
	}
	ctx, done := context.WithTimeout(ctx, upkeepInterval)
	defer done()
	object := s.record.get()
	received := s.network.LastReceived() // before the read: it must not be newer than what is read
	// After a silence in which the traffic-manager may have given the session up, the tunnel can
	// hear it again before the watch reports the deletion.
	silence := gaveUp(s.health.silentSince(), received, object.Status.GivenUpAfter.Duration/2)
	read := s.watch.Session
	if silence || time.Since(s.verified) >= verifyInterval {
		read, s.verified = s.watch.ReadSession, time.Now()
	}
	fresh, err := read(ctx)
	if gone := s.health.observe(err, s.server); err != nil {
		return gone, err
	}
	if !fresh.DeletionTimestamp.IsZero() || fresh.UID != object.UID {
		return true, nil
	}
	s.record.update(func(status *detour.SessionStatus) { status.GivenUpAfter = fresh.Status.GivenUpAfter })
	s.health.setRefusal(permanentError(fresh.Status))
	if outdated(object.Status, fresh.Status) {
		return false, errOtherManager
	}
	s.health.received(received)
	s.intercepts.ForgetEnded(ctx)
	return false, s.follow(ctx, object.Status, fresh.Status)
}

// follow adapts the network to a changed status.
func (s *session) follow(ctx context.Context, was, is detour.SessionStatus) error {
	if !slices.Equal(is.UDPEndpoints, was.UDPEndpoints) {
		s.network.OfferDirect(ctx, is.UDPEndpoints)
		s.record.update(func(status *detour.SessionStatus) { status.UDPEndpoints = is.UDPEndpoints })
	}
	same := slices.Equal(is.Subnets, was.Subnets) && slices.Equal(is.NodeAddresses, was.NodeAddresses)
	if len(is.Subnets) == 0 || same {
		return nil
	}
	if err := s.network.Follow(is); err != nil {
		s.log.Warn("following the cluster's networks failed", "err", err)
		return err
	}
	s.record.update(func(status *detour.SessionStatus) {
		status.Subnets, status.NodeAddresses = is.Subnets, is.NodeAddresses
	})
	return nil
}

// outdated reports whether the laptop's tunnel is useless: the traffic-manager has another key, or
// other addresses for laptops because the chart's sessionCIDR has changed. Such a tunnel may seem
// alive, but nothing passes through it.
func outdated(was, is detour.SessionStatus) bool {
	return is.ManagerPublicKey != "" && is.ManagerPublicKey != was.ManagerPublicKey ||
		len(is.Addresses) > 0 && !slices.Equal(is.Addresses, was.Addresses)
}
