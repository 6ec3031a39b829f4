package intercept

import (
	"testing"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

func rolloutNamed(name string, spec argo.Spec) *argo.Rollout {
	u := argo.New()
	u.SetName(name)
	u.SetNamespace("shop")
	return &argo.Rollout{Unstructured: u, Spec: spec}
}

// A Rollout carries the plan of its pods itself. Other workloads carry it in their pod template.
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
