package intercept

import (
	"context"

	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
)

// siblings returns the ports of the session's other intercepts of the service that get their agents
// the same way, such as the intercepts of a range of ports. One rollout or one attached agent
// serves all.
func (r *Reconciler) siblings(
	ctx context.Context, i *detour.Intercept, target *workload, plan inject.Plan,
) []inject.Port {
	var list detour.InterceptList
	if err := r.List(ctx, &list, client.InNamespace(i.Namespace)); err != nil {
		return nil // then each intercept rolls out by itself
	}
	var ports []inject.Port
	for n := range list.Items {
		other := &list.Items[n]
		if other.UID == i.UID || !isSibling(i, other) {
			continue
		}
		w, err := r.resolve(ctx, other)
		if err != nil || w.Name() != target.Name() || w.port.Port == 0 {
			continue // its own reconciliation tells the user
		}
		if w.checkTLS(other, plan, other.Spec.Match != nil) != nil {
			continue
		}
		if other.Spec.TLS != nil {
			w.port.Secret = other.Spec.TLS.Secret
		}
		ports = append(ports, w.port)
	}
	return ports
}

func isSibling(i, other *detour.Intercept) bool {
	over := other.Spec.Suspend || other.Status.Phase == detour.PhaseRefused || !other.DeletionTimestamp.IsZero()
	return !over && other.Spec.Session == i.Spec.Session && other.Spec.Service == i.Spec.Service &&
		other.Spec.Mode == i.Spec.Mode && other.Spec.Attach == i.Spec.Attach
}
