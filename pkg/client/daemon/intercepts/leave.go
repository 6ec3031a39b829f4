package intercepts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/explain"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// suspendPatch asks the traffic-manager to give traffic and work back.
var suspendPatch = []byte(`{"spec":{"suspend":true}}`)

// Leave ends the intercepts of a service or a workload, or the one with a name. It returns those
// that have ended, also with an error.
func (s *Set) Leave(ctx context.Context, req *daemonv1.LeaveRequest) ([]*daemonv1.Intercept, error) {
	var ports servicePorts
	if req.Port != "" {
		ports = s.portsOf(ctx, req.Service)
	}
	s.mu.Lock()
	ended := s.dropPendingLocked(req, ports)
	names, err := s.selectLocked(req, ports)
	s.mu.Unlock()
	if len(names) == 0 {
		if len(ended) > 0 {
			return ended, nil
		}
		return nil, err
	}
	if err := s.suspend(ctx, names); cluster.IsSilent(err) {
		return ended, explain.Error(err, "leave "+req.Service)
	}
	for _, name := range names {
		i, err := s.end(ctx, name)
		if err != nil {
			return ended, err
		}
		ended = append(ended, i)
	}
	return ended, nil
}

// LeaveAll ends all intercepts and drops the pending ones. left reports whether one has ended. The
// error says why the cluster may not know of it; one for which cluster.IsSilent is true has ended
// the work.
func (s *Set) LeaveAll(ctx context.Context) (left bool, err error) {
	s.mu.Lock()
	s.pending = nil
	s.mu.Unlock()
	names := s.names()
	err = s.suspend(ctx, names)
	for _, name := range names {
		if cluster.IsSilent(err) {
			break
		}
		if _, endErr := s.end(ctx, name); endErr != nil {
			s.Log.Warn("leaving an intercept failed", "intercept", name, "err", endErr)
			err = endErr
		} else {
			left = true
		}
	}
	return left, err
}

// selectLocked returns the names of the active intercepts that a leave means. The error says which
// there are instead.
func (s *Set) selectLocked(req *daemonv1.LeaveRequest, ports servicePorts) (names []string, err error) {
	var targets, otherPorts []string // all that this laptop intercepts; other ports of the one that is meant
	for name, l := range s.active {
		known := slices.Concat([]string{name}, l.formerNames, namesOf(l.object.Spec.Service, workloadOf(&l.object)))
		targets = append(targets, known[len(known)-1])
		port, number := "", l.object.Status.ServicePort
		if l.object.Spec.Port != nil {
			port = l.object.Spec.Port.String()
		}
		switch {
		case !slices.Contains(known, req.Service):
		case req.Port == "" || ports.same(req.Port, port) || number != 0 && number == ports.number(req.Port):
			names = append(names, name)
		default:
			otherPorts = append(otherPorts, cmp.Or(port, fmt.Sprint(number)))
		}
	}
	slices.Sort(targets)
	slices.Sort(otherPorts)
	switch {
	case len(names) > 0:
		return names, nil
	case len(otherPorts) > 0:
		return nil, fmt.Errorf("port %s of %s is not intercepted by this laptop: it intercepts port %s",
			req.Port, req.Service, strings.Join(slices.Compact(otherPorts), ", "))
	case len(targets) > 0:
		return nil, fmt.Errorf("%s is not intercepted by this laptop: it intercepts %s",
			req.Service, strings.Join(slices.Compact(targets), ", "))
	}
	return nil, errors.New("there is no intercept to leave")
}

// suspend asks the traffic-manager to give traffic and work back. It asks for all intercepts before
// end waits for one: a replaced container with several ports returns only when none of them is
// taken over. It stops when the API server does not answer.
func (s *Set) suspend(ctx context.Context, names []string) error {
	for _, name := range names {
		i, ok := s.get(name)
		if !ok {
			continue
		}
		err := cluster.WithShortTimeout(ctx, func(ctx context.Context) error {
			return s.Cluster.Patch(ctx, &i, client.RawPatch("application/merge-patch+json", suspendPatch))
		})
		switch {
		case cluster.IsSilent(err):
			s.Log.Warn("suspending the intercept failed", "intercept", name, "err", err)
			return err
		case apierrors.IsNotFound(err):
		case err != nil:
			s.Log.Warn("suspending the intercept failed", "intercept", name, "err", err)
		default:
			s.update(&i)
		}
	}
	return nil
}

// update notes an object as a write has returned it.
func (s *Set) update(i *detour.Intercept) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.active[i.Name]; l != nil {
		l.object = *i
	}
}

// end deletes an intercept that suspend was called for. The laptop answers until every agent has
// turned away from it.
func (s *Set) end(ctx context.Context, name string) (*daemonv1.Intercept, error) {
	i, ok := s.get(name)
	if !ok {
		return nil, fmt.Errorf("there is no intercept %s", name)
	}
	last, err := s.awaitSuspended(ctx, &i)
	if err != nil && !apierrors.IsNotFound(err) {
		s.Log.Warn("waiting until the intercept is suspended failed", "intercept", name, "err", err)
	}
	if err == nil {
		i = *last
	}
	if err := cluster.WithShortTimeout(ctx, func(ctx context.Context) error {
		return client.IgnoreNotFound(s.Cluster.Delete(ctx, &i))
	}); err != nil {
		return nil, explain.Error(err, "delete the intercept "+name)
	}
	s.forget(name)
	return describe(&i), nil
}

// awaitSuspended waits until the traffic-manager has suspended an intercept, for a limited time. It
// does not wait if the object does not ask for that. suspended is the object as suspend has patched
// it.
func (s *Set) awaitSuspended(ctx context.Context, suspended *detour.Intercept) (*detour.Intercept, error) {
	limit := suspendTimeout
	if suspended.Spec.Mode == detour.ModeReplace {
		limit = activeTimeout // the app's own container is rolled out meanwhile
	}
	waiting, done := context.WithTimeout(ctx, limit)
	defer done()
	i, err := s.Watch.AwaitIntercept(waiting, suspended.Name, func(i *detour.Intercept) bool {
		if i.Generation < suspended.Generation {
			return false // the watch has not seen the patch yet
		}
		return !i.Spec.Suspend || i.Status.Phase == detour.PhaseSuspended || i.Status.Phase == detour.PhaseRefused
	})
	if err != nil && waiting.Err() != nil && ctx.Err() == nil {
		err = nil // it took too long; the object is deleted nevertheless
	}
	return i, err
}
