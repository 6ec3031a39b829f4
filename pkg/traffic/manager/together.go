package manager

import (
	"context"

	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/traffic/inject"
)

// together adds to a plan what the session's other new intercepts of the service need, such as those of a range of ports: the workload is
// to be rolled out once for all of them.
func (r *interceptReconciler) together(ctx context.Context, i *detour.Intercept, target *workload, plan inject.Plan) inject.Plan {
	var list detour.InterceptList
	if err := r.List(ctx, &list, client.InNamespace(i.Namespace)); err != nil {
		return plan // each for itself, then
	}
	for n := range list.Items {
		other := &list.Items[n]
		waits := other.Status.Phase == "" || other.Status.Phase == detour.PhasePending
		if other.UID == i.UID || other.Spec.Session != i.Spec.Session || other.Spec.Service != i.Spec.Service || other.Spec.Suspend || !waits || other.Spec.Mode != i.Spec.Mode {
			continue
		}
		w, err := r.resolve(ctx, other)
		if err != nil || w.name() != target.name() || w.port.Port == 0 || w.setSecret(other, plan, other.Spec.Match != nil) != nil {
			continue // it will be told so itself
		}
		plan = plan.With(w.port, w.template)
	}
	return plan
}
