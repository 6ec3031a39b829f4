package intercept

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
)

// TailTarget is what `detour tail` can watch of a service at a time.
type TailTarget struct {
	Ports map[uint32]bool   // the app ports that have an agent in front of them
	Pods  map[string]string // the pods that have such an agent, UID -> name
	Note  string            // tells the user what is watched
}

// FindTailTarget finds the agents of a service's pods. port is a name or a number, or empty for all
// ports. If the user has to change something first, the error is a Refusal.
func (r *Reconciler) FindTailTarget(ctx context.Context, namespace, service, port string) (*TailTarget, error) {
	ports, err := r.portsToTail(ctx, namespace, service, port)
	if err != nil {
		return nil, err
	}
	target := &TailTarget{Ports: map[uint32]bool{}, Pods: map[string]string{}}
	var refused error
	name := ""
	for _, p := range ports {
		w, err := r.resolve(ctx, &detour.Intercept{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace},
			Spec:       detour.InterceptSpec{Service: service, Port: p},
		})
		if err != nil {
			refused = err
			continue
		}
		name = w.Name()
		pods, err := r.pods(ctx, w)
		if err != nil {
			return nil, err
		}
		for i := range pods {
			if inject.HasAgent(&pods[i], w.port) {
				target.Ports[uint32(w.port.Port)] = true
				target.Pods[string(pods[i].UID)] = pods[i].Name
			}
		}
	}
	switch {
	case len(target.Pods) > 0:
		target.Note = fmt.Sprintf("requests to service %s as %d pods of %s route them; press Ctrl-C to stop",
			service, len(target.Pods), name)
		return target, nil
	case name != "":
		return nil, refuse("", "no pod of service %s has the traffic-agent, which reports requests: "+
			"run `detour intercept %s` once to add it (with --mode wiretap the app keeps answering)", service, service)
	default:
		return nil, refused
	}
}

// portsToTail returns the given port, or the ports of the service. A port may be nil: resolve
// explains then why the service has none.
func (r *Reconciler) portsToTail(ctx context.Context, namespace, service, port string) ([]*intstr.IntOrString, error) {
	if port != "" {
		p := intstr.Parse(port)
		return []*intstr.IntOrString{&p}, nil
	}
	var svc corev1.Service
	err := r.Get(ctx, client.ObjectKey{Namespace: namespace, Name: service}, &svc)
	if client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	var ports []*intstr.IntOrString
	for _, p := range svc.Spec.Ports {
		number := intstr.FromInt32(p.Port)
		ports = append(ports, &number)
	}
	if len(ports) == 0 {
		ports = append(ports, nil)
	}
	return ports, nil
}
