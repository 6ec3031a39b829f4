// Package argo reads and restarts Argo Rollouts. It declares the few fields that detour needs: the
// Go module of Argo Rollouts would bring hundreds of other modules along. Start with FromList.
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

// Kind is the kind of an Argo Rollout.
const Kind = "Rollout"

// HashLabel is a label of every pod of a Rollout. Argo adds it to the selector of a service that it
// leads to some of the pods.
const HashLabel = "rollouts-pod-template-hash"

// GroupVersion is the API group and version of Rollouts. A cluster need not have it.
var GroupVersion = schema.GroupVersion{Group: "argoproj.io", Version: "v1alpha1"}

// Rollout is an Argo Rollout, with the parts that detour reads decoded.
type Rollout struct {
	*unstructured.Unstructured
	Spec   Spec
	Status Status
}

// Spec holds the fields of a Rollout's spec that detour reads.
type Spec struct {
	Replicas    *int32                 `json:"replicas,omitempty"`
	Selector    *metav1.LabelSelector  `json:"selector,omitempty"`
	Template    corev1.PodTemplateSpec `json:"template,omitempty"`
	WorkloadRef *WorkloadRef           `json:"workloadRef,omitempty"`
	RestartAt   *metav1.Time           `json:"restartAt,omitempty"`
	Strategy    Strategy               `json:"strategy,omitempty"`
}

// Strategy describes how a Rollout replaces one release by the next.
type Strategy struct {
	BlueGreen *BlueGreen `json:"blueGreen,omitempty"`
}

// BlueGreen names two services. Argo leads the active one to the release that serves, and the
// preview one to the release that people check before it serves.
type BlueGreen struct {
	ActiveService  string `json:"activeService,omitempty"`
	PreviewService string `json:"previewService,omitempty"`
}

// WorkloadRef names the object whose pod template a Rollout uses in place of its own.
type WorkloadRef struct {
	Kind string `json:"kind,omitempty"`
	Name string `json:"name,omitempty"`
}

// Status holds the fields of a Rollout's status that detour reads.
type Status struct {
	AvailableReplicas  int32        `json:"availableReplicas,omitempty"`
	ObservedGeneration string       `json:"observedGeneration,omitempty"`
	RestartedAt        *metav1.Time `json:"restartedAt,omitempty"`
	Message            string       `json:"message,omitempty"`
}

// NewList returns an empty list to read Rollouts into. The list is unstructured because the custom
// resource accepts some templates that Kubernetes would not: one of them must not make the others
// unreadable.
func NewList() *unstructured.UnstructuredList {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(GroupVersion.WithKind(Kind + "List"))
	return list
}

// New returns an empty Rollout.
func New() *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(GroupVersion.WithKind(Kind))
	return u
}

// From decodes a Rollout. The result shares u.
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

// List asks the API server for the Rollouts of a namespace, or of all namespaces when it is empty.
// It returns none when the cluster does not have Rollouts, or when the user may not read them.
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

// Path returns the API server's path of the Rollouts of a namespace, or of all namespaces when it
// is empty.
func Path(namespace string) string {
	if namespace == "" {
		return "/apis/" + GroupVersion.String() + "/rollouts"
	}
	return "/apis/" + GroupVersion.String() + "/namespaces/" + namespace + "/rollouts"
}

// Installed reports whether the cluster has Rollouts.
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

// Selects reports whether a service's selector selects pods of a template. It ignores HashLabel: to
// which of the pods Argo leads the service at the moment does not matter.
func Selects(selector map[string]string, template *corev1.PodTemplateSpec) bool {
	selector = maps.Clone(selector)
	delete(selector, HashLabel)
	return len(selector) > 0 && labels.SelectorFromSet(selector).Matches(labels.Set(template.Labels))
}

// AnnotateAndRestart returns a merge patch that sets an annotation of the Rollout, or removes it
// when value is nil, and makes Argo replace all pods. The patch does not change the template: a new
// template would be a new release, with its steps, pauses and analyses. version is the
// resourceVersion that the patch requires; it may be empty.
func AnnotateAndRestart(version, annotation string, value any, now time.Time) ([]byte, error) {
	metadata := map[string]any{"annotations": map[string]any{annotation: value}}
	if version != "" {
		metadata["resourceVersion"] = version
	}
	// Creation times of pods have whole seconds. A pod that was created in this second may have
	// been created before the annotation, so the restart begins with the next one.
	at := now.UTC().Truncate(time.Second).Add(time.Second)
	return json.Marshal(map[string]any{
		"metadata": metadata,
		"spec":     map[string]any{"restartAt": at.Format(time.RFC3339)},
	})
}

// Wants returns how many pods the Rollout should have.
func (r *Rollout) Wants() int32 {
	if r.Spec.Replicas == nil {
		return 1
	}
	return *r.Spec.Replicas
}

// Observed reports whether Argo has seen the newest spec.
func (r *Rollout) Observed() bool {
	seen, err := strconv.ParseInt(r.Status.ObservedGeneration, 10, 64)
	return err == nil && seen >= r.GetGeneration()
}

// Restarting reports whether a restart has begun and not ended.
func (r *Rollout) Restarting() bool {
	return r.Spec.RestartAt != nil && !r.Spec.RestartAt.Equal(r.Status.RestartedAt)
}

// Other returns the name of the other service of a blue-green Rollout, or an empty string.
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

// OwnerOf returns the name of the Rollout that a pod belongs to, or an empty string. A Rollout
// names its ReplicaSets after itself and the hash that their pods carry.
func OwnerOf(pod *corev1.Pod) string {
	hash, owner := pod.Labels[HashLabel], metav1.GetControllerOf(pod)
	if hash == "" || owner == nil || owner.Kind != "ReplicaSet" {
		return ""
	}
	name, ok := strings.CutSuffix(owner.Name, "-"+hash)
	if !ok { // the ReplicaSet of an Argo Experiment
		return ""
	}
	return name
}
