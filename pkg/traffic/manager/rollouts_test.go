package manager

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
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

// What is annotated on the Rollout counts for its pods, over what is left in a template that once was a Deployment's.
func TestPlanOfAPod(t *testing.T) {
	own, rollouts := `{"replaced":["own"]}`, `{"replaced":["rollouts"]}`
	for name, c := range map[string]struct{ own, rollouts, want string }{
		"its own":                 {own, "", own},
		"its Rollout's":           {"", rollouts, rollouts},
		"its Rollout's, over its": {own, rollouts, rollouts},
	} {
		t.Run(name, func(t *testing.T) {
			i := &injector{planOfRollout: func(context.Context, string, *corev1.Pod) (string, error) { return c.rollouts, nil }}
			pod := &corev1.Pod{}
			if c.own != "" {
				pod.Annotations = map[string]string{inject.Annotation: c.own}
			}
			plan, err := i.plan(t.Context(), "shop", pod)
			require.NoError(t, err)
			assert.Equal(t, c.want, plan.String())
			assert.Equal(t, c.want, pod.Annotations[inject.Annotation])
		})
	}
}
