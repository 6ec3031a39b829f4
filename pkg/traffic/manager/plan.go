package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/traffic/argo"
	"github.com/detour-dev/detour/pkg/traffic/inject"
)

const (
	// restartAfter is how long a rollout that was to bring what the webhook missed is waited for before another one.
	restartAfter = time.Minute
	// webhookAfter is how long the API server may take to reach the webhook of a traffic-manager that has begun.
	webhookAfter = 5 * time.Second
)

// covered says whether new pods are made as the intercept needs them.
func (w *workload) covered(p inject.Plan) bool {
	return (w.port.Port == 0 || p.Covers(w.port)) && (w.container == "" || p.Replaces(w.container))
}

// cover adds to a plan what the intercept needs.
func (w *workload) cover(p inject.Plan) inject.Plan {
	if w.port.Port != 0 {
		p = p.With(w.port, w.Template)
	}
	if w.container != "" {
		p = p.Replacing(w.container)
	}
	return p
}

// changed says whether a pod is as the intercept needs it. One to which an agent is attached has connections that the agent knows nothing of:
// who did not ask for that waits for a new pod.
func (w *workload) changed(p *corev1.Pod) bool {
	has := inject.HasSidecar
	if w.attach {
		has = inject.HasAgent
	}
	return (w.port.Port == 0 || has(p, w.port)) && (w.container == "" || inject.IsReplaced(p, w.container))
}

// with says what new pods get, for the user.
func (w *workload) with() string {
	if w.container != "" {
		return "with an idle container in place of " + w.container
	}
	return "with the traffic-agent"
}

// again rolls out once more when a pod of the newest template was made without the webhook, because the traffic-manager was away.
func (r *interceptReconciler) again(ctx context.Context, w *workload, plan inject.Plan, pods []corev1.Pod) error {
	if time.Since(r.started) < webhookAfter {
		return nil
	}
	last, err := time.Parse(time.RFC3339, plan.Restart)
	o, ofArgo := w.Object.(*argo.Rollout)
	if ofArgo && o.Spec.RestartAt != nil {
		last, err = o.Spec.RestartAt.Time, nil
	}
	if err == nil && time.Since(last) < restartAfter || ofArgo && o.Restarting() {
		return nil
	}
	for _, p := range pods {
		// A Rollout's pods do not have the annotation without the webhook.
		if p.DeletionTimestamp == nil && (ofArgo || p.Annotations[inject.Annotation] == plan.String()) && !w.changed(&p) {
			r.options.Log.Info("rolling out again: a pod was made without the webhook", "workload", w.Name(), "pod", p.Name)
			plan.Restart = time.Now().UTC().Format(time.RFC3339)
			return r.annotate(ctx, w, plan)
		}
	}
	return nil
}

// annotate writes the plan into the pod template: an ordinary rollout follows. It fails when the workload has changed meanwhile, since
// the plan was made of what it was.
func (r *interceptReconciler) annotate(ctx context.Context, w *workload, plan inject.Plan) error {
	var value any // without a plan there is no annotation
	if !plan.Empty() {
		value = plan.String()
	}
	if w.Kind == argo.Kind {
		return r.annotateRollout(ctx, w, value)
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": w.Object.GetResourceVersion()},
		"spec":     map[string]any{"template": map[string]any{"metadata": map[string]any{"annotations": map[string]any{inject.Annotation: value}}}},
	})
	if err != nil {
		return fmt.Errorf("encode the patch: %w", err)
	}
	if err := r.Patch(ctx, w.Object, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("annotate %s: %w", w.Name(), err)
	}
	return nil
}
