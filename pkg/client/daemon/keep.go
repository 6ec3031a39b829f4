package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

const (
	keepInterval = 3 * time.Second
	againTimeout = 2 * time.Minute
	// maxStrange is how often in a row it is not believed that a session is gone, when it may not be the API server who says so.
	maxStrange = 5
)

// errOtherManager is what a session ends with whose traffic-manager was installed anew: it does not know the laptop's tunnel.
var errOtherManager = errors.New("the traffic-manager has another key or other addresses for laptops")

// errEnded is the end of a session that somebody in the cluster wanted.
var errEnded = errors.New("the session was deleted in the cluster: run `detour connect` to connect again")

// keep follows the session's object until ctx ends. A session whose laptop was silent for too long, because it slept or had no network,
// is deleted by the traffic-manager: it is made again, with its intercepts, as is that of a traffic-manager that is not the same any more. One
// that is deleted while the laptop is there was deleted by a person: it ends, and the laptop is put back.
func (s *Server) keep(ctx context.Context) {
	tick := time.NewTicker(keepInterval)
	defer tick.Stop()
	var lost *session // that is being made again
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := s.get()
		if now == nil {
			lost = nil
			continue
		}
		switch {
		case now == lost: // and nobody quit or connected meanwhile
		case now.inside != nil && now.inside.Gone() && !now.isEnded():
			lost = now
			s.log.Warn("the helper of the rootless mode has ended: making the session again", "session", now.object.Name)
		default:
			deleted, err := now.refresh(ctx)
			if errors.Is(err, errOtherManager) {
				lost = now
				s.log.Info("the traffic-manager is not the same any more: making the session again", "session", now.object.Name, "why", err)
				break
			}
			if err == nil && !deleted && !now.isEnded() {
				now.resume(ctx)
			}
			if !deleted {
				continue
			}
			if !givenUp(now.heard, time.Now(), now.object.Status.GivenUpAfter.Duration) {
				s.log.Info("the session was deleted in the cluster")
				s.lose(ctx, now, nil)
				now.setProblem(errEnded)
				continue
			}
			lost = now
			s.log.Info("the session is gone after a silence: making it again", "session", now.object.Name)
		}
		if s.reconnect(ctx, lost) {
			lost = nil
		}
	}
}

// givenUp says whether the traffic-manager can have deleted a session that was heard of last at heard because of its laptop's silence.
// That the cluster can be heard now says nothing: what a laptop finds in its sockets when it wakes up was sent before.
func givenUp(heard, now time.Time, after time.Duration) bool {
	return now.Round(0).Sub(heard.Round(0)) >= after // wall clock: a monotonic one stands still while the laptop sleeps
}

// lose puts the laptop back and keeps the session only to say what became of it, and which intercepts the one in its place shall have.
func (s *Server) lose(ctx context.Context, now *session, intercepts []*wanted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.isEnded() {
		return
	}
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer done()
	if err := now.close(ending); err != nil {
		s.log.Warn("the cluster was not told of the session's end", "err", err)
	}
	now.leaveTo(intercepts)
}

// leaveTo notes what the session after this one shall have: it may be made by keep, or by a person who does not wait for that.
func (s *session) leaveTo(intercepts []*wanted) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.intercepts, s.wanted = map[string]*localIntercept{}, intercepts
}

// succeed takes what a session has left to the one after it, if that is to the same place.
func (s *session) succeed(before *session) {
	if before != nil && before.elsewhere(s.request, s.server) == "" {
		s.wanted = before.wishes()
	}
}

// reconnect makes a session anew in place of a lost one, and says whether there is nothing left to try.
func (s *Server) reconnect(ctx context.Context, old *session) bool {
	s.lose(ctx, old, old.wishes())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.get() != old {
		return true // somebody quit or connected meanwhile
	}
	trying, done := context.WithTimeout(ctx, againTimeout)
	defer done()
	n, err := connect(trying, old.request, old, s.paths, s.log, func(string) {})
	if err != nil {
		s.log.Warn("making the session again failed", "err", err)
		old.setProblem(err)
		return false
	}
	n.wanted = old.wishes()
	s.put(n)
	n.resume(trying)
	return true
}

// renews says whether a request brings credentials in place of those that the cluster does not accept any more.
func (s *session) renews(req *daemonv1.ConnectRequest) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.expired && !bytes.Equal(req.Kubeconfig, s.request.Kubeconfig)
}

// renew makes a session anew as it was, with other credentials. The caller holds s.mu.
func (s *Server) renew(ctx context.Context, old *session, kubeconfig []byte, progress func(string)) (*session, error) {
	request, intercepts := proto.CloneOf(old.request), old.wishes()
	request.Kubeconfig = kubeconfig
	ending, done := context.WithTimeout(context.WithoutCancel(ctx), quitTimeout)
	defer done()
	_ = old.close(ending) // nobody listens to the old credentials
	old.leaveTo(intercepts)
	n, err := connect(ctx, request, old, s.paths, s.log, progress)
	if err != nil {
		old.setProblem(err)
		return nil, err
	}
	n.wanted = intercepts
	s.put(n)
	n.resume(ctx)
	return n, nil
}

// refresh reads the session's object and follows what changed in the cluster's networks. It says whether the object is gone.
func (s *session) refresh(ctx context.Context) (deleted bool, err error) {
	if s.isEnded() {
		return false, nil
	}
	s.followResolvers()
	ctx, done := context.WithTimeout(ctx, keepInterval)
	defer done()
	var fresh detour.Session
	err = s.kube.Get(ctx, client.ObjectKeyFromObject(&s.object), &fresh)
	s.mu.Lock()
	if s.expired = apierrors.IsUnauthorized(err); s.expired {
		s.refused = fmt.Errorf("%w; then run `detour connect`", explain.Context{Doing: "read the session", Server: s.server}.Error(err))
	}
	s.mu.Unlock()
	if s.strange = min(s.strange+1, maxStrange); !apierrors.IsNotFound(err) || absent(err) {
		s.strange = 0
	}
	if err != nil {
		return absent(err) || s.strange == maxStrange, err
	}
	if !fresh.DeletionTimestamp.IsZero() || fresh.UID != s.object.UID {
		return true, nil
	}
	s.mu.Lock()
	s.object.Status.GivenUpAfter = fresh.Status.GivenUpAfter
	s.refused = hopeless(fresh.Status)
	s.mu.Unlock()
	if outdated(s.object.Status, fresh.Status) {
		return false, errOtherManager
	}
	s.heard = s.vif.LastReceived()
	s.forgetEnded(ctx)
	if !slices.Equal(fresh.Status.UDPEndpoints, s.object.Status.UDPEndpoints) {
		s.offerDirect(ctx, fresh.Status.UDPEndpoints)
		s.mu.Lock()
		s.object.Status.UDPEndpoints = fresh.Status.UDPEndpoints
		s.mu.Unlock()
	}
	if len(fresh.Status.Subnets) == 0 || slices.Equal(fresh.Status.Subnets, s.object.Status.Subnets) && slices.Equal(fresh.Status.NodeAddresses, s.object.Status.NodeAddresses) {
		return false, nil
	}
	if err := s.follow(fresh.Status); err != nil {
		s.log.Warn("following the cluster's networks failed", "err", err)
		return false, err
	}
	return false, nil
}

// absent says whether the API server itself says that an object is not there. What stands before it, such as a load balancer that has lost it, may
// say so of everything; and so does the API server of what was deleted with its kind.
func absent(err error) bool {
	return apierrors.IsNotFound(err) && !apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}

// outdated says whether the laptop's tunnel is made of what holds no longer: the traffic-manager has another key, or other addresses for laptops
// because somebody has changed the chart's sessionCIDR. Such a tunnel may seem to be alive, and nothing comes through it.
func outdated(was, is detour.SessionStatus) bool {
	return is.ManagerPublicKey != "" && is.ManagerPublicKey != was.ManagerPublicKey || len(is.Addresses) > 0 && !slices.Equal(is.Addresses, was.Addresses)
}

// forgetEnded drops intercepts whose objects are gone: their time was over, or somebody deleted them.
func (s *session) forgetEnded(ctx context.Context) {
	s.mu.Lock()
	var all []*localIntercept
	for _, l := range s.intercepts {
		all = append(all, l)
	}
	s.mu.Unlock()
	for _, l := range all {
		var i detour.Intercept
		if err := s.kube.Get(ctx, client.ObjectKeyFromObject(&l.object), &i); !absent(err) {
			continue
		}
		s.log.Info("an intercept has ended in the cluster", "intercept", l.object.Name)
		s.relays.remove(string(l.object.UID))
		s.mu.Lock()
		delete(s.intercepts, l.object.Name)
		s.mu.Unlock()
	}
}

// wishes are the intercepts that this laptop asked for.
func (s *session) wishes() []*wanted {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*wanted
	for _, l := range s.intercepts {
		all = append(all, &wanted{request: l.request, was: append(slices.Clone(l.was), l.object.Name)})
	}
	return append(all, s.wanted...)
}

func (s *session) setProblem(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.problem = err
}

func (s *session) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}
