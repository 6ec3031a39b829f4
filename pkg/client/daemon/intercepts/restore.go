package intercepts

import (
	"context"
	"slices"
	"strings"
	"time"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// restoreTimeout bounds the creation of one object in Restore.
const restoreTimeout = 3 * time.Second

// Pending is an intercept that the laptop had before its session was made again, and for which
// there is no object yet.
type Pending struct {
	request     *daemonv1.InterceptRequest
	formerNames []string
	err         error // of the last attempt; the mutex of the Set guards it
}

// AddPending adds an intercept that Restore shall create.
func (s *Set) AddPending(req *daemonv1.InterceptRequest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pending = append(s.pending, &Pending{request: req})
}

// Restore creates the objects of the pending intercepts. Those that fail stay pending for the next
// call. Restore does not wait until the intercepts are active: the traffic-manager retries a
// refused one by itself, because another laptop has the port by now or the service is away, and the
// status shows the state.
func (s *Set) Restore(ctx context.Context) {
	s.mu.Lock()
	all := slices.Clone(s.pending)
	s.mu.Unlock()
	for _, p := range all {
		trying, done := context.WithTimeout(ctx, restoreTimeout)
		i, err := s.create(trying, p.request)
		done()
		s.mu.Lock()
		still := slices.Contains(s.pending, p)
		switch {
		case err != nil:
			p.err = err
		case still:
			s.active[i.Name] = &local{object: *i, request: p.request, formerNames: p.formerNames}
			s.pending = slices.DeleteFunc(s.pending, func(o *Pending) bool { return o == p })
		}
		s.mu.Unlock()
		if err != nil {
			s.Log.Warn("restoring an intercept failed",
				"service", p.request.Service, "workload", p.request.Workload, "err", err)
		} else if !still { // the user has left it meanwhile
			s.abandon(ctx, i)
		}
	}
}

// dropPendingLocked drops the pending intercepts that a leave means, and describes them.
func (s *Set) dropPendingLocked(req *daemonv1.LeaveRequest, ports servicePorts) (dropped []*daemonv1.Intercept) {
	s.pending = slices.DeleteFunc(s.pending, func(p *Pending) bool {
		names := slices.Concat(p.formerNames, namesOf(p.request.Service, parseWorkload(p.request.Workload)))
		selected := slices.Contains(names, req.Service) && (req.Port == "" || ports.same(req.Port, p.request.Port))
		if selected {
			dropped = append(dropped, p.describe())
		}
		return selected
	})
	return dropped
}

func (p *Pending) describe() *daemonv1.Intercept {
	d := &daemonv1.Intercept{
		Service: p.request.Service, Port: p.request.Port, LocalPort: p.request.LocalPort, Protocol: p.request.Protocol,
		Mode: p.request.Mode, Workload: strings.ToLower(p.request.Workload), Container: p.request.Container,
		Phase: "Wanted",
	}
	if p.err != nil {
		d.Message = p.err.Error()
	}
	return d
}
