package manager

import (
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/detour-dev/detour/pkg/traffic/inject"
	"github.com/detour-dev/detour/pkg/traffic/workloads"
)

// A workload is rolled out again for a pod of its newest template that has not what the template asks for, and for no other.
func TestMissed(t *testing.T) {
	port := inject.Port{Container: "app", Port: 8080, Via: inject.ViaNftables, AgentPort: 9900}
	plan := inject.Plan{Ports: []inject.Port{port}}
	pod := func(annotation, authority string) corev1.Pod {
		p := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
		if annotation != "" {
			p.Annotations = map[string]string{inject.Annotation: annotation}
		}
		if authority != "" {
			require.NoError(t, inject.Mutate(&p, plan, inject.Options{CA: []byte(authority)}))
		}
		return p
	}
	ending := pod(plan.String(), "")
	ending.DeletionTimestamp = &metav1.Time{}
	for name, c := range map[string]struct {
		pod    corev1.Pod
		missed bool
	}{
		"as asked for":                   {pod(plan.String(), "own"), false},
		"made without the webhook":       {pod(plan.String(), ""), true},
		"of another traffic-manager":     {pod(plan.String(), "another"), true},
		"ending":                         {ending, false},
		"of a template before":           {pod("", ""), false},
		"of a template before, a plan's": {pod(inject.Plan{Restart: "before"}.String(), "another"), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &workload{Workload: &workloads.Workload{Kind: "Deployment", Object: &appsv1.Deployment{}}, port: port, authority: []byte("own")}
			missed := w.missed(plan, []corev1.Pod{pod(plan.String(), "own"), c.pod})
			require.Equal(t, c.missed, missed != nil)
		})
	}
}
