// Package workloads knows what can stand behind a service and have a traffic-agent, and says why something cannot. The traffic-manager decides by
// it, and `detour list` tells it.
package workloads

import (
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// Workload is a Deployment, a StatefulSet, a DaemonSet or a Rollout of Argo's.
type Workload struct {
	Kind       string
	Object     client.Object
	Template   *corev1.PodTemplateSpec
	Selector   labels.Selector
	TemplateOf string // the Rollout that has its pods, where it only has their template
}

// Name is what people call it by, such as deployment/catalog.
func (w *Workload) Name() string { return strings.ToLower(w.Kind) + "/" + w.Object.GetName() }

// In are the workloads of a list.
func In(list client.ObjectList) []*Workload {
	var all []*Workload
	add := func(kind string, o client.Object, t *corev1.PodTemplateSpec) {
		all = append(all, &Workload{Kind: kind, Object: o, Template: t, Selector: labels.SelectorFromSet(t.Labels)})
	}
	switch l := list.(type) {
	case *appsv1.DeploymentList:
		for i := range l.Items {
			add("Deployment", &l.Items[i], &l.Items[i].Spec.Template)
		}
	case *appsv1.StatefulSetList:
		for i := range l.Items {
			add("StatefulSet", &l.Items[i], &l.Items[i].Spec.Template)
		}
	case *appsv1.DaemonSetList:
		for i := range l.Items {
			add("DaemonSet", &l.Items[i], &l.Items[i].Spec.Template)
		}
	}
	return all
}

// AddRollouts adds Argo's to the other workloads, some of which may be their templates.
func AddRollouts(all []*Workload, rollouts []*argo.Rollout) []*Workload {
	for _, o := range rollouts {
		template := &o.Spec.Template
		if ref := o.Spec.WorkloadRef; ref != nil {
			template = &corev1.PodTemplateSpec{}
			if o.Spec.Selector != nil { // a service is known by it
				template.Labels = o.Spec.Selector.MatchLabels
			}
			for i, w := range all {
				if w.Kind == ref.Kind && w.Object.GetName() == ref.Name && w.Object.GetNamespace() == o.GetNamespace() {
					template = w.Template
					if d, ok := w.Object.(*appsv1.Deployment); ok && d.Spec.Replicas != nil && *d.Spec.Replicas == 0 {
						all[i].TemplateOf = o.GetName()
					}
					break
				}
			}
		}
		all = append(all, &Workload{Kind: argo.Kind, Object: o, Template: template, Selector: labels.SelectorFromSet(template.Labels)})
	}
	return all
}

// SelectedBy says whether a service's selector selects the workload's pods.
func (w *Workload) SelectedBy(selector map[string]string) bool {
	switch {
	case w.TemplateOf != "" || len(selector) == 0:
		return false
	case w.Kind == argo.Kind:
		return argo.Selects(selector, w.Template)
	}
	return labels.SelectorFromSet(selector).Matches(labels.Set(w.Template.Labels))
}

// overdue is how late a pod may end. The kubelet kills what does not end in its time: one that is later than this does not answer.
const overdue = time.Minute

// IsOver says whether a pod has ended, or was to end long ago on a node that is lost: it stays there until somebody takes the node away, no service
// leads to it, and nobody is to wait for it.
func IsOver(p *corev1.Pod) bool {
	lost := p.DeletionTimestamp != nil && time.Since(p.DeletionTimestamp.Time) > overdue
	return lost || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// Running are the workload's own of some pods of its namespace, as long as they run, those that are ending included.
func (w *Workload) Running(pods []corev1.Pod) []corev1.Pod {
	var running []corev1.Pod
	for _, p := range pods {
		if !IsOver(&p) && w.Selector.Matches(labels.Set(p.Labels)) && (w.Kind != argo.Kind || argo.Of(&p) == w.Object.GetName()) {
			running = append(running, p)
		}
	}
	return running
}

// UnknownTemplate says why the template of a Rollout's pods cannot be had, or nothing.
func (w *Workload) UnknownTemplate() string {
	o, ok := w.Object.(*argo.Rollout)
	if !ok || o.Spec.WorkloadRef == nil || len(w.Template.Spec.Containers) > 0 {
		return ""
	}
	ref := o.Spec.WorkloadRef
	return fmt.Sprintf("%s has its pods' template from %s %s, which detour does not know: it needs a Deployment there, or the template in the Rollout itself", w.Name(), ref.Kind, ref.Name)
}

// LeaveAlone says why the agent must not stand in front of a port, for what only the running pods have, such as a service mesh's proxy;
// or nothing.
func (w *Workload) LeaveAlone(running []corev1.Pod, port inject.Port) string {
	for _, p := range running {
		if why := inject.LeaveAlone(&p.ObjectMeta, &p.Spec, port); p.DeletionTimestamp == nil && why != "" {
			return fmt.Sprintf("port %d of %s %s", port.Port, w.Name(), why)
		}
	}
	return ""
}

// CannotRoll says why new pods cannot be had by a rollout, or nothing.
func (w *Workload) CannotRoll() string {
	const onDelete = "has the update strategy OnDelete: detour does not delete pods, so it cannot get its agent in"
	why := ""
	switch o := w.Object.(type) {
	case *appsv1.Deployment:
		if o.Spec.Paused {
			why = "is paused: resume it, so that pods with the traffic-agent can be rolled out"
		}
	case *appsv1.StatefulSet:
		if o.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
			why = onDelete
		} else if r := o.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil && *r.Partition > 0 {
			why = fmt.Sprintf("updates only pods from number %d on (rollingUpdate.partition): set it to 0, so that all of them can get the traffic-agent", *r.Partition)
		}
	case *appsv1.DaemonSet:
		if o.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
			why = onDelete
		}
	}
	if why == "" {
		return ""
	}
	return w.Name() + " " + why
}

// Behind are the workloads that a service leads to.
func Behind(all []*Workload, selector map[string]string) []*Workload {
	return slices.DeleteFunc(slices.Clone(all), func(w *Workload) bool { return !w.SelectedBy(selector) })
}
