package intercept

import (
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/wellknown"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

const (
	// repeatAfter is how long a rollout has time to bring what the webhook missed, before another
	// one.
	repeatAfter = time.Minute
	// webhookAfter is how long the API server may take to reach the webhook of a manager that has
	// just started.
	webhookAfter = 5 * time.Second
	// repeatFor is how long after the intercept was created rollouts are repeated. That makes three
	// of them: nobody's pods are to be replaced for ever.
	repeatFor = 3 * time.Minute
	// repeatLasts is how long after a repeated rollout a pod counts as created by it.
	repeatLasts = 5 * time.Minute
)

// covered reports whether new pods are created as the intercept needs them.
func (w *workload) covered(p inject.Plan) bool {
	return (w.port.Port == 0 || p.Covers(w.port)) && (w.container == "" || p.Replaces(w.container))
}

// cover returns the plan with what the intercept needs.
func (w *workload) cover(p inject.Plan) inject.Plan {
	if w.port.Port != 0 {
		p = p.With(w.port, w.Template)
	}
	if w.container != "" {
		p = p.Replacing(w.container)
	}
	return p
}

// changed reports whether a pod is as the intercept needs it. A pod with an attached agent counts
// only if the intercept asked for that: the pod has connections that the agent does not know, and
// without
// --attach the intercept waits for a new pod.
func (w *workload) changed(p *corev1.Pod) bool {
	has := inject.HasSidecar
	if w.attach {
		has = inject.HasAgent
	}
	return !inject.OfAnother(p, w.authority) && (w.port.Port == 0 || has(p, w.port)) &&
		(w.container == "" || inject.IsReplaced(p, w.container))
}

// listens reports whether a pod has an agent that follows this manager. The agent of another
// manager does not, and lets the app answer.
func (w *workload) listens(p *corev1.Pod) bool {
	return inject.HasAgent(p, w.port) && !inject.OfAnother(p, w.authority)
}

// addition tells the user what new pods get.
func (w *workload) addition() string {
	if w.container != "" {
		return "with an idle container in place of " + w.container
	}
	return "with the traffic-agent"
}

// missedPod returns a pod of the newest template that was created while the API server did not
// reach the webhook, or with the agent of another traffic-manager, whose keys this one does not
// have; or nil.
func (w *workload) missedPod(plan inject.Plan, pods []corev1.Pod) *corev1.Pod {
	for n := range pods {
		// A Rollout's pods do not have the annotation without the webhook.
		newest := w.Kind == argo.Kind || pods[n].Annotations[inject.Annotation] == plan.String()
		if newest && pods[n].DeletionTimestamp == nil && !w.changed(&pods[n]) {
			return &pods[n]
		}
	}
	return nil
}

// worthRepeating reports whether another rollout may bring what a pod misses. While a user waits
// for a new intercept it is repeated, and later once for each release: a pod that was created by
// such a rollout misses the agent for a reason that another rollout does not remove.
func (w *workload) worthRepeating(i *detour.Intercept, plan inject.Plan, missed *corev1.Pod, now time.Time) bool {
	active := i.Status.Phase == detour.PhaseActive
	switch {
	case w.container != "":
		return true
	case w.Kind == argo.Kind:
		return !active
	case !active && now.Sub(i.CreationTimestamp.Time) <= repeatFor:
		return true
	}
	last, err := time.Parse(time.RFC3339, plan.Restart)
	return err != nil || missed.CreationTimestamp.Sub(last) > repeatLasts
}

// whyMissed tells the user what to do about a pod that another rollout would not give the agent.
func (f *facts) whyMissed(p *corev1.Pod) string {
	if f.webhookCalled.Before(p.CreationTimestamp.Time) { // both are in whole seconds
		return fmt.Sprintf("because the API server did not reach the webhook: "+
			"let it reach port %d of the traffic-manager's pod", wellknown.WebhookPort)
	}
	return "the traffic-manager's log says why"
}

// repeatRollout decides to roll out once more for what the webhook missed, if it is time for that.
func (d *decider) repeatRollout() {
	if d.now.Sub(d.started) < webhookAfter {
		return
	}
	last, err := time.Parse(time.RFC3339, d.plan.Restart)
	o, isArgo := d.target.Object.(*argo.Rollout)
	if isArgo && o.Spec.RestartAt != nil {
		last, err = o.Spec.RestartAt.Time, nil
	}
	if err == nil && d.now.Sub(last) < repeatAfter || isArgo && o.Restarting() {
		return
	}
	plan := d.plan
	plan.Restart = d.now.UTC().Format(time.RFC3339)
	d.annotate, d.missed = &plan, d.missedPod.Name
}

// rolledOut reports whether every desired pod is of the newest template and available. If not,
// waiting is what the workload's controller says about that.
func (w *workload) rolledOut() (done bool, waiting string) {
	var c podCounts
	switch o := w.Object.(type) {
	case *appsv1.Deployment:
		c = podCounts{
			current: o.Status.ObservedGeneration >= o.Generation, desired: replicas(o.Spec.Replicas),
			updated: o.Status.UpdatedReplicas, total: o.Status.Replicas, available: o.Status.AvailableReplicas,
		}
		waiting = blocked(o.Status.Conditions)
	case *appsv1.StatefulSet:
		c = podCounts{
			current: o.Status.ObservedGeneration >= o.Generation, desired: replicas(o.Spec.Replicas),
			updated: o.Status.UpdatedReplicas, total: o.Status.Replicas, available: o.Status.AvailableReplicas,
		}
		// When a rollout ends the controller makes both revisions equal and counts no pod as
		// updated.
		if o.Status.UpdateRevision == o.Status.CurrentRevision {
			c.updated = c.total
		}
	case *appsv1.DaemonSet:
		c = podCounts{
			current: o.Status.ObservedGeneration >= o.Generation, desired: o.Status.DesiredNumberScheduled,
			updated: o.Status.UpdatedNumberScheduled, total: o.Status.CurrentNumberScheduled,
			available: o.Status.NumberAvailable,
		}
	case *argo.Rollout:
		// Pods of several releases serve side by side for as long as their owner likes, so their
		// number says nothing about the newest one.
		return o.Observed() && o.Status.AvailableReplicas >= o.Wants(), o.Status.Message
	}
	return c.done(), waiting
}

// podCounts are what a workload's controller says about its pods.
type podCounts struct {
	current                            bool // the counts are those of the newest template
	desired, updated, total, available int32
}

func (c podCounts) done() bool {
	return c.current && c.updated >= c.desired && c.total <= c.desired && c.available >= c.desired
}

// replicas returns how many pods a workload is to have, by default one.
func replicas(n *int32) int32 {
	if n == nil {
		return 1
	}
	return *n
}

// blocked returns why a Deployment gets no new pods, or nothing.
func blocked(conditions []appsv1.DeploymentCondition) (why string) {
	for _, c := range conditions {
		failed := c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue
		stuck := c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse
		if failed || stuck {
			why = c.Message
		}
	}
	return why
}

// available returns how many pods serve, according to the workload's controller.
func (w *workload) available() int {
	switch o := w.Object.(type) {
	case *appsv1.Deployment:
		return int(o.Status.AvailableReplicas)
	case *appsv1.StatefulSet:
		return int(o.Status.AvailableReplicas)
	case *appsv1.DaemonSet:
		return int(o.Status.NumberAvailable)
	case *argo.Rollout:
		return int(o.Status.AvailableReplicas)
	}
	return 0
}
