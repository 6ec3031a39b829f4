package workloads

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// overdue is how long after its deletion time a pod counts as lost. The kubelet kills a pod that
// does not end in time, so a pod that is overdue has a node that does not respond.
const overdue = time.Minute

// PodEnded reports whether a pod has ended, or should have ended long ago on a node that is lost.
// Such a pod stays until somebody removes the node. No service leads to it, and nobody should wait
// for it.
func PodEnded(p *corev1.Pod) bool {
	lost := p.DeletionTimestamp != nil && time.Since(p.DeletionTimestamp.Time) > overdue
	return lost || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// PodReady reports whether a pod is ready and not about to end.
func PodReady(p *corev1.Pod) bool {
	return p.DeletionTimestamp == nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// Running returns those of a namespace's pods that belong to the workload and run. A pod that is
// about to end still runs.
func (w *Workload) Running(pods []corev1.Pod) []corev1.Pod {
	var running []corev1.Pod
	for _, p := range pods {
		own := w.Kind != argo.Kind || argo.OwnerOf(&p) == w.Object.GetName()
		if !PodEnded(&p) && w.Selector.Matches(labels.Set(p.Labels)) && own {
			running = append(running, p)
		}
	}
	return running
}

// NewestPod returns the newest ready pod, or the newest pod when none is ready. It skips pods that
// have ended or are about to end, and returns nil when no other pod is there. The result points
// into pods.
func NewestPod(pods []corev1.Pod) *corev1.Pod {
	var best *corev1.Pod
	for i := range pods {
		p := &pods[i]
		switch {
		case p.DeletionTimestamp != nil || PodEnded(p):
		case best == nil, PodReady(p) && !PodReady(best):
			best = p
		case PodReady(p) == PodReady(best) && best.CreationTimestamp.Before(&p.CreationTimestamp):
			best = p
		}
	}
	return best
}
