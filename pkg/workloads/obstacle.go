package workloads

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// TemplateObstacle returns why detour cannot read the pod template of a Rollout, or an empty
// string when it can.
func (w *Workload) TemplateObstacle() string {
	o, ok := w.Object.(*argo.Rollout)
	if !ok || o.Spec.WorkloadRef == nil || len(w.Template.Spec.Containers) > 0 {
		return ""
	}
	ref := o.Spec.WorkloadRef
	return fmt.Sprintf("%s takes its pod template from %s %s, which detour cannot read: "+
		"let it refer to a Deployment, or write the template in the Rollout itself", w.Name(), ref.Kind, ref.Name)
}

// PortObstacle returns why the agent must not stand in front of a port, for a reason that only the
// running pods show, such as the proxy of a service mesh. It is empty when there is no such reason.
func (w *Workload) PortObstacle(running []corev1.Pod, port inject.Port) string {
	for _, p := range running {
		why := inject.PortObstacle(&p.ObjectMeta, &p.Spec, port)
		if p.DeletionTimestamp == nil && why != "" {
			return fmt.Sprintf("port %d of %s %s", port.Port, w.Name(), why)
		}
	}
	return ""
}

// RolloutObstacle returns why a rollout cannot give the workload new pods, or an empty string when
// it can.
func (w *Workload) RolloutObstacle() string {
	const onDelete = "has the update strategy OnDelete: detour does not delete pods, so it cannot add its agent"
	why := ""
	switch o := w.Object.(type) {
	case *appsv1.Deployment:
		if o.Spec.Paused {
			why = "is paused: resume it, so that pods with the traffic-agent can be rolled out"
		}
	case *appsv1.StatefulSet:
		if o.Spec.UpdateStrategy.Type == appsv1.OnDeleteStatefulSetStrategyType {
			why = onDelete
		} else if r := o.Spec.UpdateStrategy.RollingUpdate; r != nil && r.Partition != nil && *r.Partition > 0 {
			why = fmt.Sprintf("updates only the pods from number %d on (rollingUpdate.partition): "+
				"set the partition to 0, so that all pods can get the traffic-agent", *r.Partition)
		}
	case *appsv1.DaemonSet:
		if o.Spec.UpdateStrategy.Type == appsv1.OnDeleteDaemonSetStrategyType {
			why = onDelete
		}
	}
	if why == "" {
		return ""
	}
	return w.Name() + " " + why
}
