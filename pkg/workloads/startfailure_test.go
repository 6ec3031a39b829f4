package workloads

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A user who waits is told why, and not that containers are being created.
func TestStartFailure(t *testing.T) {
	waiting := func(reason, message string) []corev1.ContainerStatus {
		return []corev1.ContainerStatus{
			{Name: "fine", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}},
			{
				Name:  "app",
				State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}},
			},
		}
	}
	pod := func(s corev1.PodStatus) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "catalog-1"}, Status: s}
	}
	for name, c := range map[string]struct {
		pods []corev1.Pod
		want string
	}{
		"no pods":  {nil, ""},
		"all well": {[]corev1.Pod{pod(corev1.PodStatus{})}, ""},
		"on its way": {
			pods: []corev1.Pod{
				pod(corev1.PodStatus{ContainerStatuses: waiting("ContainerCreating", "")}),
				pod(corev1.PodStatus{ContainerStatuses: waiting("PodInitializing", "")}),
			},
		},
		"image not found": {
			pods: []corev1.Pod{
				pod(corev1.PodStatus{}),
				pod(corev1.PodStatus{ContainerStatuses: waiting("ImagePullBackOff", "no such image")}),
			},
			want: "container app of pod catalog-1 waits: ImagePullBackOff no such image",
		},
		"in init container": {
			pods: []corev1.Pod{pod(corev1.PodStatus{InitContainerStatuses: waiting("CrashLoopBackOff", "exit 1")})},
			want: "container app of pod catalog-1 waits: CrashLoopBackOff exit 1",
		},
		"no node": {
			[]corev1.Pod{
				pod(corev1.PodStatus{
					Conditions: []corev1.PodCondition{{
						Type:    corev1.PodScheduled,
						Status:  corev1.ConditionFalse,
						Message: "0/2 nodes are available: insufficient memory",
					}},
				}),
			},
			"pod catalog-1 has no node: 0/2 nodes are available: insufficient memory",
		},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, StartFailure(c.pods)) })
	}
}
