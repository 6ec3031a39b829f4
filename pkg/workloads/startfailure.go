package workloads

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// StartFailure names the first pod that cannot start, and why. It returns an empty string when all
// pods start.
func StartFailure(pods []corev1.Pod) string {
	for _, p := range pods {
		containers := slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses,
			p.Status.EphemeralContainerStatuses)
		for _, c := range containers {
			if w := c.State.Waiting; w != nil && w.Reason != "" && w.Reason != "PodInitializing" &&
				w.Reason != "ContainerCreating" {
				return fmt.Sprintf("container %s of pod %s waits: %s %s", c.Name, p.Name, w.Reason, w.Message)
			}
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				return fmt.Sprintf("pod %s has no node: %s", p.Name, c.Message)
			}
		}
	}
	return ""
}
