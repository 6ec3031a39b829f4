package workloads

import (
	"context"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// Workload is a Deployment, a StatefulSet, a DaemonSet or an Argo Rollout.
type Workload struct {
	Kind       string
	Object     client.Object
	Template   *corev1.PodTemplateSpec // points into Object, except for a Rollout with a workloadRef
	Selector   labels.Selector         // matches the labels of the template
	TemplateOf string                  // the Rollout that uses this workload as a mere template
}

// Name returns the name that people use for the workload, such as deployment/catalog.
func (w *Workload) Name() string { return strings.ToLower(w.Kind) + "/" + w.Object.GetName() }

// Names returns the names of the workloads, separated by commas.
func Names(all []*Workload) string {
	names := make([]string, len(all))
	for i, w := range all {
		names[i] = w.Name()
	}
	return strings.Join(names, ", ")
}

// RolloutLister returns the Argo Rollouts of a namespace, or of all namespaces when it is empty.
// It returns none where the cluster has no Argo Rollouts.
type RolloutLister func(ctx context.Context, namespace string) ([]*argo.Rollout, error)

// List returns the workloads of a namespace, or of all namespaces when it is empty. rollouts may
// be nil: then there are no Argo Rollouts. An error names what could not be listed, and wraps the
// error of the API server.
func List(ctx context.Context, r client.Reader, namespace string, rollouts RolloutLister) ([]*Workload, error) {
	var all []*Workload
	for _, k := range []struct {
		plural string
		list   client.ObjectList
	}{
		{plural: "deployments", list: &appsv1.DeploymentList{}},
		{plural: "stateful sets", list: &appsv1.StatefulSetList{}},
		{plural: "daemon sets", list: &appsv1.DaemonSetList{}},
	} {
		if err := r.List(ctx, k.list, client.InNamespace(namespace)); err != nil {
			return nil, fmt.Errorf("list the %s: %w", k.plural, err)
		}
		all = append(all, FromList(k.list)...)
	}
	if rollouts == nil {
		return all, nil
	}
	found, err := rollouts(ctx, namespace)
	if err != nil {
		return nil, fmt.Errorf("list the Argo Rollouts: %w", err)
	}
	return AddRollouts(all, found), nil
}

// FromList returns the workloads of a DeploymentList, a StatefulSetList or a DaemonSetList. They
// point into the list.
func FromList(list client.ObjectList) []*Workload {
	var all []*Workload
	add := func(kind string, o client.Object, t *corev1.PodTemplateSpec) {
		selector := labels.SelectorFromSet(t.Labels)
		all = append(all, &Workload{Kind: kind, Object: o, Template: t, Selector: selector})
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

// AddRollouts adds Argo Rollouts to the other workloads. A Rollout may use one of those as its
// template: AddRollouts notes that in the other's TemplateOf when that one has no pods of its own.
func AddRollouts(all []*Workload, rollouts []*argo.Rollout) []*Workload {
	for _, o := range rollouts {
		template := &o.Spec.Template
		if o.Spec.WorkloadRef != nil {
			template = referencedTemplate(all, o)
		}
		selector := labels.SelectorFromSet(template.Labels)
		all = append(all, &Workload{Kind: argo.Kind, Object: o, Template: template, Selector: selector})
	}
	return all
}

// referencedTemplate returns the template that the Rollout takes from another workload. When that
// workload is unknown, the template has only the labels that a service can select.
func referencedTemplate(all []*Workload, o *argo.Rollout) *corev1.PodTemplateSpec {
	ref := o.Spec.WorkloadRef
	for _, w := range all {
		if w.Kind != ref.Kind || w.Object.GetName() != ref.Name || w.Object.GetNamespace() != o.GetNamespace() {
			continue
		}
		if d, ok := w.Object.(*appsv1.Deployment); ok && d.Spec.Replicas != nil && *d.Spec.Replicas == 0 {
			w.TemplateOf = o.GetName()
		}
		return w.Template
	}
	template := &corev1.PodTemplateSpec{}
	if o.Spec.Selector != nil {
		template.Labels = o.Spec.Selector.MatchLabels
	}
	return template
}

// SelectedBy reports whether a service's selector selects the workload's pods.
func (w *Workload) SelectedBy(selector map[string]string) bool {
	switch {
	case w.TemplateOf != "" || len(selector) == 0:
		return false
	case w.Kind == argo.Kind:
		return argo.Selects(selector, w.Template)
	}
	return labels.SelectorFromSet(selector).Matches(labels.Set(w.Template.Labels))
}

// Behind returns the workloads whose pods a service's selector selects.
func Behind(all []*Workload, selector map[string]string) []*Workload {
	return slices.DeleteFunc(slices.Clone(all), func(w *Workload) bool { return !w.SelectedBy(selector) })
}

// Named returns the workloads with a name, of one kind, or of any kind when kind is empty. Without
// a kind it leaves out a workload that is the mere template of a Rollout.
func Named(all []*Workload, kind, name string) []*Workload {
	return slices.DeleteFunc(slices.Clone(all), func(w *Workload) bool {
		matches := w.Object.GetName() == name && (kind == "" && w.TemplateOf == "" || w.Kind == kind)
		return !matches
	})
}
