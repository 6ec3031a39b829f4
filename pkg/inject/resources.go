package inject

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// resources are small. A container without limits would take a pod out of the class Guaranteed, and is refused where a quota
// asks for limits: so the agent has a limit of each kind that every container of the pod has.
func resources(spec *corev1.PodSpec) corev1.ResourceRequirements {
	r := corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("20Mi")}}
	ceiling := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("64Mi")}
	guaranteed := true
	for _, kind := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limited := true
		for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
			limit, ok := c.Resources.Limits[kind]
			limited = limited && ok
			if request, asked := c.Resources.Requests[kind]; asked && request.Cmp(limit) != 0 {
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
		r.Limits[kind] = ceiling[kind]
	}
	if guaranteed {
		r.Limits[corev1.ResourceCPU] = resource.MustParse("100m") // reserved for it, so not more than it needs
		r.Requests = r.Limits.DeepCopy()
	}
	return r
}
