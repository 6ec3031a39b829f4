package intercept

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"github.com/detour-dev/detour/pkg/inject"
)

// An intercept without --attach waits for new pods, even if an agent is attached to those that run.
func TestAttachedPodIsNotRolledOut(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{
		Containers: []corev1.Container{{Name: "app"}},
		Volumes: []corev1.Volume{{
			Name: "token",
			VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{
					ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"},
				}},
			}},
		}},
	}}
	container, err := inject.Attach(pod, []int32{8080}, inject.Options{})
	require.NoError(t, err)
	pod.Spec.EphemeralContainers = append(pod.Spec.EphemeralContainers, *container)
	port := inject.Port{Port: 8080, Via: inject.ViaNftables}
	assert.True(t, (&workload{port: port, attach: true}).changed(pod))
	assert.False(t, (&workload{port: port}).changed(pod))
}
