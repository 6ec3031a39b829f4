package manager

import (
	"context"

	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
)

// together adds to a plan what the session's other intercepts of the service need: the workload is to be rolled out once for all of them.
func (r *interceptReconciler) together(ctx context.Context, i *detour.Intercept, target *workload, plan inject.Plan) inject.Plan {
	for _, p := range r.siblings(ctx, i, target, plan) {
		plan = plan.With(p, target.Template)
	}
	return plan
}

// siblings are the ports of the session's other intercepts of the service that are made the same way, such as those of a range of ports.
func (r *interceptReconciler) siblings(ctx context.Context, i *detour.Intercept, target *workload, plan inject.Plan) []inject.Port {
	var list detour.InterceptList
	if err := r.List(ctx, &list, client.InNamespace(i.Namespace)); err != nil {
		return nil // each for itself, then
	}
	var ports []inject.Port
	for n := range list.Items {
		other := &list.Items[n]
		over := other.Spec.Suspend || other.Status.Phase == detour.PhaseRefused || !other.DeletionTimestamp.IsZero()
		if over || other.UID == i.UID || other.Spec.Session != i.Spec.Session || other.Spec.Service != i.Spec.Service || other.Spec.Mode != i.Spec.Mode || other.Spec.Attach != i.Spec.Attach {
			continue
		}
		w, err := r.resolve(ctx, other)
		if err != nil || w.Name() != target.Name() || w.port.Port == 0 || w.setSecret(other, plan, other.Spec.Match != nil) != nil {
			continue // it will be told so itself
		}
		ports = append(ports, w.port)
	}
	return ports
}
