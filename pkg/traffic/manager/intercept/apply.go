package intercept

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// apply does what was decided, except for attaching. An error leaves the rest undone: the next
// Reconcile decides again.
func (r *Reconciler) apply(ctx context.Context, f facts, d decision) (ctrl.Result, error) {
	i := f.intercept
	if d.restore {
		if err := r.restore(ctx); err != nil {
			return ctrl.Result{}, err
		}
	}
	switch {
	case d.deactivate:
		r.config.Agents.Deactivate(string(i.UID))
	case d.activate != nil:
		r.config.Agents.Activate(string(i.UID), *d.activate)
	}
	if d.annotate != nil {
		if d.missed != "" {
			r.config.Log.Info("rolling out again: a pod was created without the webhook",
				"namespace", i.Namespace, "workload", f.target.Name(), "pod", d.missed)
		}
		if err := r.annotate(ctx, f.target, *d.annotate); err != nil {
			return ctrl.Result{}, err
		}
	}
	if !equality.Semantic.DeepEqual(i.Status, d.status) {
		i.Status = d.status
		if err := r.Status().Update(ctx, i); err != nil {
			return ctrl.Result{}, client.IgnoreNotFound(err)
		}
	}
	return ctrl.Result{RequeueAfter: d.requeue}, nil
}

// annotate writes the plan into the pod template, which makes the workload roll out. It fails if
// the workload has changed meanwhile, since the plan was made for the workload as it was.
func (r *Reconciler) annotate(ctx context.Context, w *workload, plan inject.Plan) error {
	var value any // null removes the annotation
	if !plan.Empty() {
		value = plan.String()
	}
	if w.Kind == argo.Kind {
		return r.annotateRollout(ctx, w, value)
	}
	annotations := map[string]any{inject.Annotation: value}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": w.Object.GetResourceVersion()},
		"spec": map[string]any{
			"template": map[string]any{"metadata": map[string]any{"annotations": annotations}},
		},
	})
	if err != nil {
		return fmt.Errorf("encode the patch: %w", err)
	}
	if err := r.Patch(ctx, w.Object, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("annotate %s: %w", w.Name(), err)
	}
	return nil
}

// annotateRollout writes the plan on an Argo Rollout and restarts its pods.
func (r *Reconciler) annotateRollout(ctx context.Context, w *workload, plan any) error {
	patch, err := argo.AnnotateAndRestart(w.Object.GetResourceVersion(), inject.Annotation, plan, time.Now())
	if err != nil {
		return fmt.Errorf("encode the patch: %w", err)
	}
	o := argo.New()
	o.SetNamespace(w.Object.GetNamespace())
	o.SetName(w.Object.GetName())
	if err := r.Patch(ctx, o, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("annotate %s: %w", w.Name(), err)
	}
	return nil
}
