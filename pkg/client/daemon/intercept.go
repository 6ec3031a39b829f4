package daemon

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/traffic/route/spec"
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
}

// intercept creates the object, waits until traffic flows, and takes everything back when it does not come to that.
func (s *session) intercept(ctx context.Context, req *daemonv1.InterceptRequest, tell func(*daemonv1.InterceptResponse)) (_ *daemonv1.Intercept, err error) {
	if c, err := dialLocal(s.place.Dial, uint16(req.LocalPort)); err != nil {
		where := ""
		if s.inside != nil {
			where = " of what `detour run` starts"
		}
		tell(&daemonv1.InterceptResponse{Warning: fmt.Sprintf("nothing listens on local port %d%s yet: until it does, %s", req.LocalPort, where, whoAnswers(req))})
	} else {
		_ = c.Close()
	}
	i := detour.Intercept{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.namespace, GenerateName: objectName(req.Service) + "-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: detour.GroupVersion.String(), Kind: "Session", Name: s.object.Name, UID: s.object.UID}},
		},
		Spec: detour.InterceptSpec{Session: s.object.Name, Service: req.Service, LocalPort: int32(req.LocalPort), Match: spec.ToAPI(req.Match)},
	}
	if req.TtlSeconds > 0 {
		i.Spec.TTL = &metav1.Duration{Duration: time.Duration(req.TtlSeconds) * time.Second}
	}
	if req.Wiretap {
		i.Spec.Mode = detour.ModeWiretap
	}
	if req.ErrorOnFailure {
		i.Spec.OnFailure = detour.OnFailureError
	}
	if req.Port != "" {
		port := intstr.Parse(req.Port)
		i.Spec.Port = &port
	}
	if err := s.kube.Create(ctx, &i); err != nil {
		return nil, explain.Error(err, "create an intercept in namespace "+s.namespace)
	}
	defer func() {
		if err != nil {
			ending, done := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
			defer done()
			s.relays.remove(string(i.UID))
			if derr := client.IgnoreNotFound(s.kube.Delete(ending, &i)); derr != nil {
				s.log.Warn("deleting the intercept failed", "intercept", i.Name, "err", derr)
			}
		}
	}()
	// The laptop must be able to answer before the first agent asks.
	s.relays.add(string(i.UID), uint16(req.LocalPort))
	waiting, cancel := context.WithTimeout(ctx, activeTimeout)
	defer cancel()
	last := ""
	for {
		if err := s.kube.Get(waiting, client.ObjectKeyFromObject(&i), &i); err != nil && waiting.Err() == nil {
			return nil, explain.Error(err, "read the intercept")
		}
		message := ""
		if c := meta.FindStatusCondition(i.Status.Conditions, detour.ConditionReady); c != nil {
			message = c.Message
		}
		switch i.Status.Phase {
		case detour.PhaseActive:
			s.mu.Lock()
			s.intercepts[i.Name] = &localIntercept{object: i, request: req}
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

func whoAnswers(req *daemonv1.InterceptRequest) string {
	if req.Wiretap {
		return "the copies are dropped"
	}
	if req.ErrorOnFailure {
		return "nobody answers"
	}
	return "the cluster's pods answer"
}

// leave ends the intercept of a service or with a name.
func (s *session) leave(ctx context.Context, req *daemonv1.LeaveRequest) ([]*daemonv1.Intercept, error) {
	s.mu.Lock()
	var names, have []string
	for name, l := range s.intercepts {
		have = append(have, l.object.Spec.Service)
		port := ""
		if l.object.Spec.Port != nil {
			port = l.object.Spec.Port.String()
		}
		if (name == req.Service || l.object.Spec.Service == req.Service) && (req.Port == "" || req.Port == port) {
			names = append(names, name)
		}
	}
	s.mu.Unlock()
	if len(names) == 0 {
		if len(have) == 0 {
			return nil, errors.New("there is no intercept to leave")
		}
		return nil, fmt.Errorf("service %s is not intercepted by this laptop: it intercepts %s", req.Service, strings.Join(have, ", "))
	}
	var left []*daemonv1.Intercept
	for _, name := range names {
		i, err := s.leaveOne(ctx, name)
		if err != nil {
			return left, err
		}
		left = append(left, i)
	}
	return left, nil
}

// leaveOne suspends first, so that the laptop answers until every agent has turned away from it.
func (s *session) leaveOne(ctx context.Context, name string) (*daemonv1.Intercept, error) {
	s.mu.Lock()
	l := s.intercepts[name]
	s.mu.Unlock()
	if l == nil {
		return nil, fmt.Errorf("there is no intercept %s", name)
	}
	i := l.object
	patch := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"suspend":true}}`))
	err := s.kube.Patch(ctx, &i, patch)
	deadline := time.Now().Add(suspendTimeout)
	for err == nil && i.Status.Phase != detour.PhaseSuspended && time.Now().Before(deadline) {
		if err = sleep(ctx, pollInterval); err == nil {
			err = s.kube.Get(ctx, client.ObjectKeyFromObject(&i), &i)
		}
	}
	if err != nil && !apierrors.IsNotFound(err) {
		s.log.Warn("suspending the intercept failed", "intercept", name, "err", err)
	}
	if err := client.IgnoreNotFound(s.kube.Delete(ctx, &i)); err != nil {
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
		Agents: i.Status.Agents, Redirect: i.Status.Redirect, ContainerPort: uint32(i.Status.ContainerPort), Requests: i.Status.Requests, Personal: i.Spec.Match != nil, Wiretap: i.Spec.Mode == detour.ModeWiretap, ServicePort: uint32(i.Status.ServicePort), Dropped: uint32(i.Status.Dropped),
	}
	if i.Spec.Port != nil {
		d.Port = i.Spec.Port.String()
	}
	if w := i.Status.Workload; w != nil {
		d.Workload = strings.ToLower(w.Kind) + "/" + w.Name
	}
	if c := meta.FindStatusCondition(i.Status.Conditions, detour.ConditionReady); c != nil {
		d.Message = c.Message
	}
	return d
}
