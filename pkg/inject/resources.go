package inject

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// resources returns the resources of the agent's containers. A container without limits would take
// the pod out of the quality-of-service class Guaranteed, and a quota that demands limits would
// refuse it. So the agent gets a limit of each kind that every other container of the pod has.
func resources(spec *corev1.PodSpec) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("20Mi"),
	}}
	limits := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi"),
	}
	guaranteed := true
	for _, kind := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limited := true
		for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
			limit, ok := c.Resources.Limits[kind]
			limited = limited && ok
			if request, ok := c.Resources.Requests[kind]; ok && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
		if !limited {
			guaranteed = false
			continue
		}
		if r.Limits == nil {
			r.Limits = corev1.ResourceList{}
		}
		r.Limits[kind] = limits[kind]
	}
	if guaranteed {
		r.Limits[corev1.ResourceCPU] = resource.MustParse("100m") // the node reserves it, so it is small
		r.Requests = r.Limits.DeepCopy()
	}
	return r
}
