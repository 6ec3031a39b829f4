package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/detour-dev/detour/pkg/traffic/argo"
	"github.com/detour-dev/detour/pkg/traffic/inject"
)

func rolloutNamed(name string, spec argo.Spec) *argo.Rollout {
	u := argo.New()
	u.SetName(name)
	u.SetNamespace("shop")
	return &argo.Rollout{Unstructured: u, Spec: spec}
}

// A Deployment that a Rollout refers to has no pods of its own: only its template counts.
func TestAddRollouts(t *testing.T) {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}}}
	deployments := func() []*workload {
		return workloadsIn(&appsv1.DeploymentList{Items: []appsv1.Deployment{
			{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}, Spec: appsv1.DeploymentSpec{Template: template}},
			{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "elsewhere"}, Spec: appsv1.DeploymentSpec{Template: template}},
		}})
	}
	for name, c := range map[string]struct {
		rollout *argo.Rollout
		want    []string
		labels  map[string]string
	}{
		"with a template":     {rolloutNamed("shop", argo.Spec{Template: template}), []string{"deployment/web", "deployment/web", "rollout/shop"}, template.Labels},
		"with a deployment's": {rolloutNamed("shop", argo.Spec{WorkloadRef: &argo.WorkloadRef{Kind: "Deployment", Name: "web"}}), []string{"deployment/web", "rollout/shop"}, template.Labels},
		"with none":           {rolloutNamed("shop", argo.Spec{WorkloadRef: &argo.WorkloadRef{Kind: "Deployment", Name: "gone"}}), []string{"deployment/web", "deployment/web", "rollout/shop"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var names []string
			all := addRollouts(deployments(), []*argo.Rollout{c.rollout})
			for _, w := range all {
				names = append(names, w.name())
			}
			assert.Equal(t, c.want, names)
			assert.Equal(t, c.labels, all[len(all)-1].template.Labels)
		})
	}
}

// The plan of a Rollout's pods is its own annotation, other workloads' is their template's.
func TestAnnotationOf(t *testing.T) {
	annotated := metav1.ObjectMeta{Annotations: map[string]string{inject.Annotation: `{"replaced":["app"]}`}}
	rollout := rolloutNamed("web", argo.Spec{})
	rollout.SetAnnotations(annotated.Annotations)
	of := &appsv1.Deployment{Spec: appsv1.DeploymentSpec{Template: corev1.PodTemplateSpec{ObjectMeta: annotated}}}
	assert.Equal(t, annotated.Annotations[inject.Annotation], annotationOf(rollout))
	assert.Equal(t, annotated.Annotations[inject.Annotation], annotationOf(rollout.Unstructured))
	assert.Equal(t, annotated.Annotations[inject.Annotation], annotationOf(of))
	assert.Empty(t, annotationOf(&appsv1.Deployment{ObjectMeta: annotated}))
	assert.Empty(t, annotationOf(&corev1.Pod{ObjectMeta: annotated}))
	assert.True(t, mayRestore(rollout.Unstructured))
}
