package workloads

import (
	"testing"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// A workload that never rolls out is refused at once, and the refusal says what to do.
func TestRolloutObstacle(t *testing.T) {
	for name, c := range map[string]struct {
		object client.Object
		want   string
	}{
		"deployment":        {&appsv1.Deployment{}, ""},
		"paused deployment": {&appsv1.Deployment{Spec: appsv1.DeploymentSpec{Paused: true}}, "is paused"},
		"recreated deployment": {
			object: &appsv1.Deployment{
				Spec: appsv1.DeploymentSpec{
					Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType},
				},
			},
		},
		"stateful set": {
			object: &appsv1.StatefulSet{
				Spec: appsv1.StatefulSetSpec{
					UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType},
				},
			},
		},
		"stateful set, by hand": {
			object: &appsv1.StatefulSet{
				Spec: appsv1.StatefulSetSpec{
					UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType},
				},
			},
			want: "OnDelete",
		},
		"daemon set": {&appsv1.DaemonSet{}, ""},
		"daemon set, by hand": {
			object: &appsv1.DaemonSet{
				Spec: appsv1.DaemonSetSpec{
					UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType},
				},
			},
			want: "OnDelete",
		},
		"rollout": {&argo.Rollout{Unstructured: argo.New()}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := (&Workload{Object: c.object}).RolloutObstacle()
			if c.want == "" {
				assert.Empty(t, got)
			}
			assert.Contains(t, got, c.want)
		})
	}
}
