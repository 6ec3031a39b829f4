package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/route/spec"
	"github.com/detour-dev/detour/pkg/tlspeek"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

const (
	activeTimeout  = 5 * time.Minute // a rollout of many pods takes its time; Ctrl-C ends the wait
	suspendTimeout = 15 * time.Second
)

// localIntercept is an intercept of this laptop.
type localIntercept struct {
	object  detour.Intercept
	request *daemonv1.InterceptRequest
	was     []string // its names in the sessions before: who made it knows it by one of them
}

// begin creates the object of an intercept. The laptop can answer from then on, before the first agent asks.
func (s *session) begin(ctx context.Context, req *daemonv1.InterceptRequest) (*detour.Intercept, error) {
	i := &detour.Intercept{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace, GenerateName: objectName(cmp.Or(req.Service, path.Base(req.Workload))) + "-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: detour.GroupVersion.String(), Kind: "Session", Name: s.object.Name, UID: s.object.UID}},
		},
		Spec: detour.InterceptSpec{
			Session: s.object.Name, Service: req.Service, LocalPort: int32(req.LocalPort), Match: spec.ToAPI(req.Match), Mode: detour.Mode(req.Mode), Container: req.Container, Attach: req.Attach,
		},
	}
	if kind, name, ok := strings.Cut(req.Workload, "/"); ok {
		i.Spec.Workload = &detour.WorkloadRef{Kind: kind, Name: name}
	} else if req.Workload != "" {
		i.Spec.Workload = &detour.WorkloadRef{Name: req.Workload}
	}
	if req.TlsSecret != "" {
		i.Spec.TLS = &detour.TLS{Secret: req.TlsSecret, LocalPlaintext: req.LocalPlaintext}
	}
	if req.TtlSeconds > 0 {
		i.Spec.TTL = &metav1.Duration{Duration: time.Duration(req.TtlSeconds) * time.Second}
	}
	if req.ErrorOnFailure {
		i.Spec.OnFailure = detour.OnFailureError
	}
	i.Spec.Protocol = corev1.Protocol(req.Protocol)
	if req.Port != "" {
		port := intstr.Parse(req.Port)
		i.Spec.Port = &port
	}
	if err := s.kube.Create(ctx, i); err != nil {
		return nil, explain.Error(err, "create an intercept in namespace "+s.namespace)
	}
	if req.LocalPort != 0 {
		s.relays.add(string(i.UID), uint16(req.LocalPort))
	}
	return i, nil
}

// abandon takes back what begin has made.
func (s *session) abandon(ctx context.Context, i *detour.Intercept) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer done()
	s.relays.remove(string(i.UID))
	if err := client.IgnoreNotFound(s.kube.Delete(ctx, i)); err != nil {
		s.log.Warn("deleting the intercept failed", "intercept", i.Name, "err", err)
	}
}

// intercept begins one, waits until traffic flows, and takes everything back when it does not come to that.
func (s *session) intercept(ctx context.Context, req *daemonv1.InterceptRequest, tell func(*daemonv1.InterceptResponse)) (_ *daemonv1.Intercept, err error) {
	begun, err := s.begin(ctx, req)
	if err != nil {
		return nil, err
	}
	i := *begun
	defer func() {
		if err != nil {
			s.abandon(ctx, &i)
		}
	}()
	waiting, cancel := context.WithTimeout(ctx, activeTimeout)
	defer cancel()
	last, tried := "", req.LocalPort == 0 // for the work or the environment alone, no traffic
	for {
		if err := s.kube.Get(waiting, client.ObjectKeyFromObject(&i), &i); err != nil && waiting.Err() == nil {
			return nil, explain.Error(err, "read the intercept")
		}
		if !tried && i.Status.Workload != nil {
			tried = true
			if i.Status.Protocol == "" { // who listens for datagrams does not say so
				s.tryLocal(ctx, req, tell)
			}
		}
		message := ""
		if c := meta.FindStatusCondition(i.Status.Conditions, detour.ConditionReady); c != nil {
			message = c.Message
		}
		switch i.Status.Phase {
		case detour.PhaseActive:
			s.mu.Lock()
			s.intercepts[i.Name] = &localIntercept{object: i, request: req}
			s.wanted = slices.DeleteFunc(s.wanted, func(w *wanted) bool { return sameTarget(w.request, req) })
			s.mu.Unlock()
			return describe(&i), nil
		case detour.PhaseRefused:
			return nil, errors.New(message)
		}
		if message != last {
			last = message
			tell(&daemonv1.InterceptResponse{Progress: message})
		}
		if serr := sleep(waiting, pollInterval); serr != nil {
			if ctx.Err() != nil {
				return nil, errors.New("interrupted: the intercept is taken back")
			}
			return nil, fmt.Errorf("the intercept did not become active within %s: %s", activeTimeout, message)
		}
	}
}

// tryLocal warns when the local process cannot answer.
func (s *session) tryLocal(ctx context.Context, req *daemonv1.InterceptRequest, tell func(*daemonv1.InterceptResponse)) {
	c, err := dialLocal(s.place.Dial, uint16(req.LocalPort))
	if err != nil {
		where := ""
		if s.inside != nil {
			where = " of what `detour run` starts"
		}
		tell(&daemonv1.InterceptResponse{Warning: fmt.Sprintf("nothing listens on local port %d%s yet: until it does, %s", req.LocalPort, where, whoAnswers(req))})
	} else if warning := whatItSpeaks(ctx, c, req); warning != "" {
		tell(&daemonv1.InterceptResponse{Warning: warning})
	}
}

// whatItSpeaks says when the local process speaks TLS where it should not, or does not where it should. It closes c.
func whatItSpeaks(ctx context.Context, c net.Conn, req *daemonv1.InterceptRequest) string {
	if req.TlsSecret == "" {
		_ = c.Close()
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, localTimeout)
	defer cancel()
	switch secured := tlspeek.ServerSpeaksTLS(ctx, c); {
	case !secured && !req.LocalPlaintext:
		return fmt.Sprintf("what listens on local port %d does not speak TLS: add --local-plaintext, or until it does %s", req.LocalPort, whoAnswers(req))
	case secured && req.LocalPlaintext:
		return fmt.Sprintf("what listens on local port %d speaks TLS: leave out --local-plaintext", req.LocalPort)
	}
	return ""
}

func whoAnswers(req *daemonv1.InterceptRequest) string {
	if req.Mode == string(detour.ModeWiretap) {
		return "the copies are dropped"
	}
	if req.ErrorOnFailure || req.Mode == string(detour.ModeReplace) {
		return "nobody answers"
	}
	return "the cluster's pods answer"
}

// leave ends the intercepts of a service or a workload, or the one with a name.
func (s *session) leave(ctx context.Context, req *daemonv1.LeaveRequest) ([]*daemonv1.Intercept, error) {
	var ports servicePorts
	if req.Port != "" {
		ports = s.portsOf(ctx, req.Service)
	}
	s.mu.Lock()
	left := s.forget(req, ports)
	names, err := s.meant(req, ports)
	s.mu.Unlock()
	if len(names) == 0 {
		if len(left) > 0 {
			return left, nil
		}
		return nil, err
	}
	if err := s.suspend(ctx, names); silent(err) {
		return left, explain.Error(err, "leave "+req.Service)
	}
	for _, name := range names {
		i, err := s.leaveOne(ctx, name)
		if err != nil {
			return left, err
		}
		left = append(left, i)
	}
	return left, nil
}

// meant are the names of the intercepts that are to be left. The caller holds mu.
func (s *session) meant(req *daemonv1.LeaveRequest, ports servicePorts) (names []string, err error) {
	var have, others []string // of others, and other ports of the same
	for name, l := range s.intercepts {
		is := slices.Concat([]string{name}, l.was, calledBy(l.object.Spec.Service, cmp.Or(l.object.Status.Workload, l.object.Spec.Workload)))
		have = append(have, is[len(is)-1])
		port, number := "", l.object.Status.ServicePort
		if l.object.Spec.Port != nil {
			port = l.object.Spec.Port.String()
		}
		switch {
		case !slices.Contains(is, req.Service):
		case req.Port == "" || ports.same(req.Port, port) || number != 0 && number == ports.number(req.Port):
			names = append(names, name)
		default:
			others = append(others, cmp.Or(port, fmt.Sprint(number)))
		}
	}
	slices.Sort(have)
	slices.Sort(others)
	switch {
	case len(names) > 0:
		return names, nil
	case len(others) > 0:
		return nil, fmt.Errorf("port %s of %s is not intercepted by this laptop: it intercepts port %s", req.Port, req.Service, strings.Join(slices.Compact(others), ", "))
	case len(have) > 0:
		return nil, fmt.Errorf("%s is not intercepted by this laptop: it intercepts %s", req.Service, strings.Join(slices.Compact(have), ", "))
	}
	return nil, errors.New("there is no intercept to leave")
}

// suspend asks the traffic-manager to give traffic and work back. Of several ports of a replaced container none is done without the others.
// It stops when the API server does not answer.
func (s *session) suspend(ctx context.Context, names []string) error {
	for _, name := range names {
		s.mu.Lock()
		l := s.intercepts[name]
		s.mu.Unlock()
		if l == nil {
			continue
		}
		i := l.object
		err := s.part(ctx, func(ctx context.Context) error {
			return client.IgnoreNotFound(s.kube.Patch(ctx, &i, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"suspend":true}}`))))
		})
		if err != nil {
			s.log.Warn("suspending the intercept failed", "intercept", name, "err", err)
		}
		if silent(err) {
			return err
		}
	}
	return nil
}

// leaveOne ends an intercept that was suspended: the laptop answers until every agent has turned away from it.
func (s *session) leaveOne(ctx context.Context, name string) (*daemonv1.Intercept, error) {
	s.mu.Lock()
	l := s.intercepts[name]
	s.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("there is no intercept %s", name)
	}
	i := l.object
	read := func(ctx context.Context) error { return s.kube.Get(ctx, client.ObjectKeyFromObject(&i), &i) }
	err := s.part(ctx, read)
	deadline := time.Now().Add(suspendTimeout)
	if i.Spec.Mode == detour.ModeReplace {
		deadline = time.Now().Add(activeTimeout) // the app's own container is rolled out meanwhile
	}
	for err == nil && i.Spec.Suspend && i.Status.Phase != detour.PhaseSuspended && i.Status.Phase != detour.PhaseRefused && time.Now().Before(deadline) {
		if err = sleep(ctx, pollInterval); err == nil {
			err = s.part(ctx, read)
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		s.log.Warn("waiting until the intercept is suspended failed", "intercept", name, "err", err)
	}
	if err := s.part(ctx, func(ctx context.Context) error { return client.IgnoreNotFound(s.kube.Delete(ctx, &i)) }); err != nil {
		return nil, explain.Error(err, "delete the intercept "+name)
	}
	s.relays.remove(string(i.UID))
	s.mu.Lock()
	delete(s.intercepts, name)
	s.mu.Unlock()
	return describe(&i), nil
}

func describe(i *detour.Intercept) *daemonv1.Intercept {
	d := &daemonv1.Intercept{
		Name: i.Name, Namespace: i.Namespace, Service: i.Spec.Service, LocalPort: uint32(i.Spec.LocalPort), Phase: string(i.Status.Phase),
		Agents: i.Status.Agents, Redirect: i.Status.Redirect, ContainerPort: uint32(i.Status.ContainerPort), Protocol: string(i.Status.Protocol), Requests: i.Status.Requests, Personal: i.Spec.Match != nil, Mode: string(i.Spec.Mode), Container: i.Status.Container, ServicePort: uint32(i.Status.ServicePort), Dropped: uint32(i.Status.Dropped),
	}
	if i.Spec.Port != nil {
		d.Port = i.Spec.Port.String()
	}
	if i.Spec.TLS != nil {
		d.TlsSecret = i.Spec.TLS.Secret
	}
	if w := cmp.Or(i.Status.Workload, i.Spec.Workload); w != nil {
		d.Workload = strings.TrimPrefix(strings.ToLower(w.Kind)+"/"+w.Name, "/")
	}
	if c := meta.FindStatusCondition(i.Status.Conditions, detour.ConditionReady); c != nil {
		d.Message = c.Message
	}
	return d
}
