package install

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/detour-dev/detour/pkg/inject"
)

// Nobody waits for pods that have ended, as those that were evicted: they have the annotation for as long as they are remembered.
func TestCarrying(t *testing.T) {
	pod := func(name string, phase corev1.PodPhase, annotation string) corev1.Pod {
		return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Annotations: map[string]string{inject.Annotation: annotation}}, Status: corev1.PodStatus{Phase: phase}}
	}
	require.Equal(t, []string{"shop/serving"}, podsWithAgent([]corev1.Pod{
		pod("serving", corev1.PodRunning, "{}"), pod("evicted", corev1.PodFailed, "{}"), pod("done", corev1.PodSucceeded, "{}"), pod("other", corev1.PodRunning, ""),
	}))
}
