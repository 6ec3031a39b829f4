package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/wellknown"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

const (
	// restartAfter is how long a rollout that was to bring what the webhook missed is waited for before another one.
	restartAfter = time.Minute
	// webhookAfter is how long the API server may take to reach the webhook of a traffic-manager that has begun.
	webhookAfter = 5 * time.Second
	// restartsFor is how long after an intercept was asked for such rollouts are tried: three times, since nobody's pods are to be made anew for ever.
	restartsFor = 3 * time.Minute
	// restartLasts is how long after such a rollout a pod counts as made by it.
	restartLasts = 5 * time.Minute
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
	return !inject.OfAnother(p, w.authority) && (w.port.Port == 0 || has(p, w.port)) && (w.container == "" || inject.IsReplaced(p, w.container))
}

// listens says whether a pod has an agent that can be told something. One of another traffic-manager cannot, and has the app answer.
func (w *workload) listens(p *corev1.Pod) bool {
	return inject.HasAgent(p, w.port) && !inject.OfAnother(p, w.authority)
}

// with says what new pods get, for the user.
func (w *workload) with() string {
	if w.container != "" {
		return "with an idle container in place of " + w.container
	}
	return "with the traffic-agent"
}

// missed is a pod of the newest template that was made while the API server did not reach the webhook, or with the agent of another
// traffic-manager, whose keys this one does not have. Nil is none.
func (w *workload) missed(plan inject.Plan, pods []corev1.Pod) *corev1.Pod {
	for n := range pods {
		// A Rollout's pods do not have the annotation without the webhook.
		newest := w.Kind == argo.Kind || pods[n].Annotations[inject.Annotation] == plan.String()
		if newest && pods[n].DeletionTimestamp == nil && !w.changed(&pods[n]) {
			return &pods[n]
		}
	}
	return nil
}

// worthwhile says whether another rollout may bring what a pod has missed. While somebody waits for a new intercept it is tried again and again, and
// later once for each release: a pod that such a rollout has made itself missed it for a reason that stays.
func (w *workload) worthwhile(i *detour.Intercept, plan inject.Plan, missed *corev1.Pod) bool {
	inForce := i.Status.Phase == detour.PhaseActive
	switch {
	case w.container != "":
		return true
	case w.Kind == argo.Kind:
		return !inForce
	case !inForce && time.Since(i.CreationTimestamp.Time) <= restartsFor:
		return true
	}
	last, err := time.Parse(time.RFC3339, plan.Restart)
	return err != nil || missed.CreationTimestamp.Sub(last) > restartLasts
}

// whyMissed says what a user can do about a pod that has no agent for a reason that stays.
func (r *interceptReconciler) whyMissed(p *corev1.Pod) string {
	if r.webhookAsked().Before(p.CreationTimestamp.Time) { // whole seconds
		return fmt.Sprintf("because the API server did not reach the webhook: let it reach port %d of the traffic-manager's pod", wellknown.WebhookPort)
	}
	return "the traffic-manager's log says why"
}

// again rolls out once more for what the webhook missed.
func (r *interceptReconciler) again(ctx context.Context, w *workload, plan inject.Plan, missed *corev1.Pod) error {
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
	r.options.Log.Info("rolling out again: a pod was made without the webhook", "workload", w.Name(), "pod", missed.Name)
	plan.Restart = time.Now().UTC().Format(time.RFC3339)
	return r.annotate(ctx, w, plan)
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
