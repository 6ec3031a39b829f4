package daemon

import (
	"context"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// wanted is an intercept that the laptop had before its session was made again, and for which there is no object yet.
type wanted struct {
	request *daemonv1.InterceptRequest
	was     []string // its names until now
	err     error
}

// resume asks for what is wanted; keep calls it again for what is left. Nobody waits for what comes of it: what the traffic-manager refuses,
// because somebody else has the port by now or the service is away, it looks at again by itself, and the status says how it stands.
func (s *session) resume(ctx context.Context) {
	s.mu.Lock()
	all := slices.Clone(s.wanted)
	s.mu.Unlock()
	for _, w := range all {
		trying, done := context.WithTimeout(ctx, keepInterval)
		i, err := s.begin(trying, w.request)
		done()
		s.mu.Lock()
		still := slices.Contains(s.wanted, w)
		switch {
		case err != nil:
			w.err = err
		case still:
			s.intercepts[i.Name] = &localIntercept{object: *i, request: w.request, was: w.was}
			s.wanted = slices.DeleteFunc(s.wanted, func(o *wanted) bool { return o == w })
		}
		s.mu.Unlock()
		if err != nil {
			s.log.Warn("intercepting again failed", "service", w.request.Service, "workload", w.request.Workload, "err", err)
		} else if !still { // somebody left it meanwhile
			s.abandon(ctx, i)
		}
	}
}

// forget drops what is wanted and was asked to be left. The caller holds mu.
func (s *session) forget(req *daemonv1.LeaveRequest, ports servicePorts) (left []*daemonv1.Intercept) {
	s.wanted = slices.DeleteFunc(s.wanted, func(w *wanted) bool {
		kind, name, ok := strings.Cut(w.request.Workload, "/")
		if !ok {
			kind, name = "", w.request.Workload
		}
		is := slices.Contains(slices.Concat(w.was, calledBy(w.request.Service, &detour.WorkloadRef{Kind: kind, Name: name})), req.Service) && (req.Port == "" || ports.same(req.Port, w.request.Port))
		if is {
			left = append(left, w.describe())
		}
		return is
	})
	return left
}

// calledBy is what a person calls an intercept by: its service, or else its workload, with or without the kind.
func calledBy(service string, workload *detour.WorkloadRef) []string {
	switch {
	case service != "":
		return []string{service}
	case workload.Kind == "":
		return []string{workload.Name}
	}
	return []string{workload.Name, strings.ToLower(workload.Kind) + "/" + workload.Name}
}

// sameTarget says whether two requests are for the same traffic or work. Of one port several can have a part each.
func sameTarget(a, b *daemonv1.InterceptRequest) bool {
	return a.Service == b.Service && a.Port == b.Port && a.Protocol == b.Protocol && a.Workload == b.Workload && proto.Equal(a.Match, b.Match)
}

func (w *wanted) describe() *daemonv1.Intercept {
	d := &daemonv1.Intercept{
		Service: w.request.Service, Port: w.request.Port, LocalPort: w.request.LocalPort, Protocol: w.request.Protocol, Mode: w.request.Mode,
		Workload: strings.ToLower(w.request.Workload), Container: w.request.Container, Phase: "Wanted",
	}
	if w.err != nil {
		d.Message = w.err.Error()
	}
	return d
}
