// Package argo reads Argo Rollouts. Of their many fields detour needs a few, and their Go module would bring hundreds of others along.
package argo

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/rest"
)

// Kind of a workload.
const Kind = "Rollout"

// HashLabel is on every pod of a Rollout, and in the selectors of the services that Argo leads to a part of them.
const HashLabel = "rollouts-pod-template-hash"

// GroupVersion is that of the custom resource, which a cluster may have or not.
var GroupVersion = schema.GroupVersion{Group: "argoproj.io", Version: "v1alpha1"}

// Rollout is one of Argo's.
type Rollout struct {
	*unstructured.Unstructured
	Spec   Spec
	Status Status
}

// Spec is what detour reads of a Rollout's.
type Spec struct {
	Replicas    *int32                 `json:"replicas,omitempty"`
	Selector    *metav1.LabelSelector  `json:"selector,omitempty"`
	Template    corev1.PodTemplateSpec `json:"template,omitempty"`
	WorkloadRef *WorkloadRef           `json:"workloadRef,omitempty"`
	RestartAt   *metav1.Time           `json:"restartAt,omitempty"`
	Strategy    Strategy               `json:"strategy,omitempty"`
}

// Strategy is how releases happen.
type Strategy struct {
	BlueGreen *BlueGreen `json:"blueGreen,omitempty"`
}

// BlueGreen names the services that Argo leads to the release that serves, and to the one that is to be looked at before it does.
type BlueGreen struct {
	ActiveService  string `json:"activeService,omitempty"`
	PreviewService string `json:"previewService,omitempty"`
}

// WorkloadRef names what has the pod template of a Rollout that has none itself.
type WorkloadRef struct {
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
}

// Status is what detour reads of a Rollout's.
type Status struct {
	AvailableReplicas  int32        `json:"availableReplicas,omitempty"`
	ObservedGeneration string       `json:"observedGeneration,omitempty"`
	RestartedAt        *metav1.Time `json:"restartedAt,omitempty"`
	Message            string       `json:"message,omitempty"`
}

// NewList is an empty list to read Rollouts into. They are read without their types: the custom resource takes some templates that are none,
// and one of these must not be in the way of the others.
func NewList() *unstructured.UnstructuredList {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(GroupVersion.WithKind(Kind + "List"))
	return list
}

// New is an empty Rollout.
func New() *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(GroupVersion.WithKind(Kind))
	return u
}

// From reads a Rollout.
func From(u *unstructured.Unstructured) (*Rollout, error) {
	var parts struct {
		Spec   Spec   `json:"spec"`
		Status Status `json:"status"`
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &parts); err != nil {
		return nil, fmt.Errorf("rollout %s: %w", u.GetName(), err)
	}
	return &Rollout{Unstructured: u, Spec: parts.Spec, Status: parts.Status}, nil
}

// FromList returns the Rollouts of a list. It leaves out those that it cannot read.
func FromList(list *unstructured.UnstructuredList) []*Rollout {
	var all []*Rollout
	for i := range list.Items {
		if r, err := From(&list.Items[i]); err == nil {
			all = append(all, r)
		}
	}
	return all
}

// List asks the API server for the Rollouts of a namespace, of all when it is empty. There are none where the cluster does not have them or
// the user may not read them.
func List(ctx context.Context, c rest.Interface, namespace string) ([]*Rollout, error) {
	raw, err := c.Get().AbsPath(Path(namespace)).Do(ctx).Raw()
	if apierrors.IsNotFound(err) || apierrors.IsForbidden(err) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	list := NewList()
	if err := list.UnmarshalJSON(raw); err != nil {
		return nil, fmt.Errorf("read the rollouts: %w", err)
	}
	return FromList(list), nil
}

// Lister returns List for one API server, as workloads.RolloutLister wants it.
func Lister(c rest.Interface) func(ctx context.Context, namespace string) ([]*Rollout, error) {
	return func(ctx context.Context, namespace string) ([]*Rollout, error) { return List(ctx, c, namespace) }
}

// Path is where the API server has the Rollouts of a namespace, or of all.
func Path(namespace string) string {
	if namespace == "" {
		return "/apis/" + GroupVersion.String() + "/rollouts"
	}
	return "/apis/" + GroupVersion.String() + "/namespaces/" + namespace + "/rollouts"
}

// Installed says whether the cluster has Rollouts.
func Installed(d discovery.ServerResourcesInterface) (bool, error) {
	resources, err := d.ServerResourcesForGroupVersion(GroupVersion.String())
	if apierrors.IsNotFound(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("ask for the resources of %s: %w", GroupVersion, err)
	}
	for _, r := range resources.APIResources {
		if r.Kind == Kind && r.Name == "rollouts" {
			return true, nil
		}
	}
	return false, nil
}

// Selects says whether a service's selector selects pods of a template. Which of their pods Argo leads it to at the moment does not matter.
func Selects(selector map[string]string, template *corev1.PodTemplateSpec) bool {
	selector = maps.Clone(selector)
	delete(selector, HashLabel)
	return len(selector) > 0 && labels.SelectorFromSet(selector).Matches(labels.Set(template.Labels))
}

// AnnotateAndRestart is a merge patch that sets an annotation of the Rollout itself, or removes it when value is nil, and has Argo make all its
// pods anew. The template stays as it is, for another one would be a release: with its steps, pauses and analyses. The version may be empty.
func AnnotateAndRestart(version, annotation string, value any, now time.Time) ([]byte, error) {
	metadata := map[string]any{"annotations": map[string]any{annotation: value}}
	if version != "" {
		metadata["resourceVersion"] = version
	}
	// Pods have whole seconds: one that was made in this one may not know the annotation.
	at := now.UTC().Truncate(time.Second).Add(time.Second)
	return json.Marshal(map[string]any{"metadata": metadata, "spec": map[string]any{"restartAt": at.Format(time.RFC3339)}})
}

// Wants is how many pods there should be.
func (r *Rollout) Wants() int32 {
	if r.Spec.Replicas == nil {
		return 1
	}
	return *r.Spec.Replicas
}

// Observed says whether Argo has seen the newest spec.
func (r *Rollout) Observed() bool {
	seen, err := strconv.ParseInt(r.Status.ObservedGeneration, 10, 64)
	return err == nil && seen >= r.GetGeneration()
}

// Restarting says whether a restart that was asked for is not over.
func (r *Rollout) Restarting() bool {
	return r.Spec.RestartAt != nil && !r.Spec.RestartAt.Equal(r.Status.RestartedAt)
}

// Other is the name of the other one of the two services of a blue-green Rollout, or empty.
func (r *Rollout) Other(service string) string {
	s := r.Spec.Strategy.BlueGreen
	switch {
	case s == nil:
		return ""
	case service == s.ActiveService:
		return s.PreviewService
	case service == s.PreviewService:
		return s.ActiveService
	}
	return ""
}

// OwnerOf returns the name of the Rollout that a pod belongs to, or an empty string. A Rollout names
// its ReplicaSets after itself and the hash that their pods carry.
func OwnerOf(pod *corev1.Pod) string {
	hash, owner := pod.Labels[HashLabel], metav1.GetControllerOf(pod)
	if hash == "" || owner == nil || owner.Kind != "ReplicaSet" {
		return ""
	}
	name, ok := strings.CutSuffix(owner.Name, "-"+hash)
	if !ok { // of an experiment
		return ""
	}
	return name
}
