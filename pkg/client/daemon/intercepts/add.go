package intercepts

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
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/explain"
	"github.com/detour-dev/detour/pkg/route/spec"
	"github.com/detour-dev/detour/pkg/tlspeek"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// tlsTimeout bounds the question whether the local process speaks TLS.
const tlsTimeout = time.Second

// Tell receives progress and warnings while an intercept is made.
type Tell func(*daemonv1.InterceptResponse)

// Add creates an intercept and waits until traffic flows. It passes progress and warnings to tell.
// After an error no object is left in the cluster.
func (s *Set) Add(ctx context.Context, req *daemonv1.InterceptRequest, tell Tell) (_ *daemonv1.Intercept, err error) {
	// Also if ctx ends meanwhile: the API server may have created the object, and abandon needs its
	// name.
	created, err := s.create(context.WithoutCancel(ctx), req)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.abandon(ctx, created)
		}
	}()
	i, err := s.awaitActive(ctx, created.Name, req, tell)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active[i.Name] = &local{object: *i, request: req}
	s.pending = slices.DeleteFunc(s.pending, func(p *Pending) bool { return sameTarget(p.request, req) })
	return describe(i), nil
}

// awaitActive waits until an intercept is active. It returns an error if the traffic-manager
// refuses it.
func (s *Set) awaitActive(
	ctx context.Context, name string, req *daemonv1.InterceptRequest, tell Tell,
) (*detour.Intercept, error) {
	waiting, cancel := context.WithTimeout(ctx, activeTimeout)
	defer cancel()
	message := ""
	checked := req.LocalPort == 0 // no traffic: only the work or the environment is taken over
	i, err := s.Watch.AwaitIntercept(waiting, name, func(i *detour.Intercept) bool {
		if !checked && i.Status.Workload != nil {
			checked = true
			if i.Status.Protocol == "" { // whether a process receives UDP cannot be seen
				s.checkLocalProcess(ctx, req, tell)
			}
		}
		text := readyMessage(i)
		over := i.Status.Phase == detour.PhaseActive || i.Status.Phase == detour.PhaseRefused
		if text != message && !over {
			tell(&daemonv1.InterceptResponse{Progress: text})
		}
		message = text
		return over
	})
	switch {
	case err == nil && i.Status.Phase == detour.PhaseRefused:
		return nil, errors.New(message)
	case err == nil:
		return i, nil
	case ctx.Err() != nil:
		return nil, errors.New("interrupted: the intercept is taken back")
	case waiting.Err() != nil:
		return nil, fmt.Errorf("the intercept did not become active within %s: %s", activeTimeout, message)
	}
	return nil, explain.Error(err, "read the intercept")
}

// create creates the object of an intercept. The laptop can answer from then on, before the first
// agent dials it.
func (s *Set) create(ctx context.Context, req *daemonv1.InterceptRequest) (*detour.Intercept, error) {
	i := s.objectFor(req)
	if err := s.Cluster.Create(ctx, i); err != nil {
		return nil, explain.Error(err, "create an intercept in namespace "+s.Cluster.Namespace)
	}
	if req.LocalPort != 0 {
		s.Relays.Add(string(i.UID), uint16(req.LocalPort))
	}
	return i, nil
}

// objectFor converts a request to the object that asks the traffic-manager for it.
func (s *Set) objectFor(req *daemonv1.InterceptRequest) *detour.Intercept {
	i := &detour.Intercept{
		ObjectMeta: metav1.ObjectMeta{
			Namespace:    s.Cluster.Namespace,
			GenerateName: cluster.ObjectName(cmp.Or(req.Service, path.Base(req.Workload))) + "-",
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: detour.GroupVersion.String(), Kind: "Session", Name: s.Session.Name, UID: s.Session.UID,
			}},
		},
		Spec: detour.InterceptSpec{
			Session: s.Session.Name, Service: req.Service, LocalPort: int32(req.LocalPort),
			Match: spec.ToAPI(req.Match),
			Mode:  detour.Mode(req.Mode), Container: req.Container, Attach: req.Attach,
			Workload: parseWorkload(req.Workload), Protocol: corev1.Protocol(req.Protocol),
		},
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
	if req.Port != "" {
		port := intstr.Parse(req.Port)
		i.Spec.Port = &port
	}
	return i
}

// abandon deletes an object that create has made, also when ctx has ended.
func (s *Set) abandon(ctx context.Context, i *detour.Intercept) {
	ctx, done := context.WithTimeout(context.WithoutCancel(ctx), abandonTimeout)
	defer done()
	s.Relays.Remove(string(i.UID))
	if err := client.IgnoreNotFound(s.Cluster.Delete(ctx, i)); err != nil {
		s.Log.Warn("deleting the intercept failed", "intercept", i.Name, "err", err)
	}
}

// checkLocalProcess warns if the local process cannot answer.
func (s *Set) checkLocalProcess(ctx context.Context, req *daemonv1.InterceptRequest, tell Tell) {
	c, err := s.DialLocal(ctx, uint16(req.LocalPort))
	if err != nil {
		where := ""
		if s.Rootless {
			where = " of a process that `detour run` has started"
		}
		tell(&daemonv1.InterceptResponse{Warning: fmt.Sprintf("nothing listens on local port %d%s yet: until then, %s",
			req.LocalPort, where, fallbackText(req))})
	} else if warning := tlsWarning(ctx, c, req); warning != "" {
		tell(&daemonv1.InterceptResponse{Warning: warning})
	}
}

// tlsWarning describes a local process that speaks TLS but should not, or should but does not. It
// closes c.
func tlsWarning(ctx context.Context, c net.Conn, req *daemonv1.InterceptRequest) string {
	if req.TlsSecret == "" {
		_ = c.Close()
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, tlsTimeout)
	defer cancel()
	switch secured := tlspeek.ServerSpeaksTLS(ctx, c); {
	case !secured && !req.LocalPlaintext:
		return fmt.Sprintf("the process on local port %d does not speak TLS: add --local-plaintext; until then, %s",
			req.LocalPort, fallbackText(req))
	case secured && req.LocalPlaintext:
		return fmt.Sprintf("the process on local port %d speaks TLS: leave out --local-plaintext", req.LocalPort)
	}
	return ""
}

// fallbackText says what happens to requests while the local process does not answer.
func fallbackText(req *daemonv1.InterceptRequest) string {
	if req.Mode == string(detour.ModeWiretap) {
		return "the copies are dropped"
	}
	if req.ErrorOnFailure || req.Mode == string(detour.ModeReplace) {
		return "requests get errors"
	}
	return "the cluster's pods answer"
}

func readyMessage(i *detour.Intercept) string {
	if c := meta.FindStatusCondition(i.Status.Conditions, detour.ConditionReady); c != nil {
		return c.Message
	}
	return ""
}

// describe converts an object to what the command line prints.
func describe(i *detour.Intercept) *daemonv1.Intercept {
	d := &daemonv1.Intercept{
		Name: i.Name, Namespace: i.Namespace, Service: i.Spec.Service, LocalPort: uint32(i.Spec.LocalPort),
		Phase: string(i.Status.Phase), Agents: i.Status.Agents, Redirect: i.Status.Redirect,
		ContainerPort: uint32(i.Status.ContainerPort), Protocol: string(i.Status.Protocol), Requests: i.Status.Requests,
		Personal: i.Spec.Match != nil, Mode: string(i.Spec.Mode), Container: i.Status.Container,
		ServicePort: uint32(i.Status.ServicePort), Dropped: uint32(i.Status.Dropped), Message: readyMessage(i),
	}
	if i.Spec.Port != nil {
		d.Port = i.Spec.Port.String()
	}
	if i.Spec.TLS != nil {
		d.TlsSecret = i.Spec.TLS.Secret
	}
	if w := workloadOf(i); w != nil {
		d.Workload = strings.TrimPrefix(strings.ToLower(w.Kind)+"/"+w.Name, "/")
	}
	return d
}
