package manager

import (
	"context"
	"errors"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// workload is what stands behind a service or is asked for by its name, and what an intercept needs of it.
type workload struct {
	*workloads.Workload
	servicePort int32
	appProtocol string      // of the service's port
	port        inject.Port // none when the workload was asked for by its name
	container   string      // that is replaced, in mode Replace
	attach      bool        // running pods get the agent
	authority   []byte      // that this traffic-manager's agents trust, PEM
	leftOut     string      // argo.HashLabel of pods that do not serve what is intercepted
}

// resolve finds the workload of an intercept, and what of it.
func (r *interceptReconciler) resolve(ctx context.Context, i *detour.Intercept) (*workload, error) {
	find := r.behindService
	if i.Spec.Workload != nil {
		find = r.byName
	}
	w, err := find(ctx, i)
	if err != nil {
		return nil, err
	}
	w.attach, w.authority = i.Spec.Attach, r.inject.CA
	if i.Spec.Mode == detour.ModeReplace || i.Spec.Mode == detour.ModeIngest {
		if w.container, err = inject.PickContainer(w.Template, i.Spec.Container, w.port.Port); err != nil {
			return nil, refuse(detour.ReasonWhichContainer, "%s: %s", w.Name(), err)
		}
	}
	if i.Spec.Mode == detour.ModeIngest {
		return w, nil
	}
	// What is in force needs no rollout.
	if why := w.RolloutObstacle(); why != "" && !i.Spec.Attach && i.Status.Phase != detour.PhaseActive {
		if i.Spec.Mode != detour.ModeReplace && w.port.Protocol == "" && i.Spec.TLS == nil {
			why += "; or use --attach, which needs no new pods"
		}
		return nil, refuse(detour.ReasonUnsupported, "%s", why)
	}
	return w, nil
}

// byName finds a workload that no port of a service leads to. A name without a kind must not mean a service as well, whose traffic
// would find nobody.
func (r *interceptReconciler) byName(ctx context.Context, i *detour.Intercept) (*workload, error) {
	wanted := i.Spec.Workload
	if wanted.Kind == "" {
		var svc corev1.Service
		err := r.Get(ctx, client.ObjectKey{Namespace: i.Namespace, Name: wanted.Name}, &svc)
		if err == nil && len(svc.Spec.Ports) > 0 {
			return nil, refuse(detour.ReasonPortAmbiguous, "%s is a service too: say with --port LOCAL where its traffic goes, or name the workload, as in deployment/%s, whose traffic then finds nobody", wanted.Name, wanted.Name)
		}
		if client.IgnoreNotFound(err) != nil {
			return nil, err
		}
	}
	found, err := r.workloads(ctx, i.Namespace, func(w *workloads.Workload) bool {
		return w.Object.GetName() == wanted.Name && (wanted.Kind == "" && w.TemplateOf == "" || w.Kind == wanted.Kind)
	})
	if err != nil {
		return nil, err
	}
	switch {
	case len(found) > 1:
		return nil, refuse(detour.ReasonManyWorkloads, "there are several workloads %s (%s): say which", wanted.Name, namesOf(found))
	case len(found) == 1 && found[0].TemplateOf != "":
		return nil, refuse(detour.ReasonNoWorkload, "%s has no pods, it is only the template of rollout/%s: intercept that", found[0].Name(), found[0].TemplateOf)
	case len(found) == 1:
		return found[0], found[0].knownTemplate()
	case wanted.Kind == "":
		return nil, refuse(detour.ReasonNoWorkload, "there is no %s %s in namespace %s", r.kinds(), wanted.Name, i.Namespace)
	}
	return nil, refuse(detour.ReasonNoWorkload, "%s %s does not exist in namespace %s", strings.ToLower(wanted.Kind), wanted.Name, i.Namespace)
}

// workloads are those of a namespace, of all namespaces when it is empty.
func (r *interceptReconciler) workloads(ctx context.Context, namespace string, which func(*workloads.Workload) bool) ([]*workload, error) {
	all, err := workloads.List(ctx, r, namespace, r.listRollouts)
	if err != nil {
		return nil, err
	}
	var found []*workload
	for _, w := range all {
		if which(w) {
			found = append(found, &workload{Workload: w})
		}
	}
	return found, nil
}

// knownTemplate refuses a Rollout whose pods' template cannot be had.
func (w *workload) knownTemplate() error {
	if why := w.TemplateObstacle(); why != "" {
		return refuse(detour.ReasonUnsupported, "%s", why)
	}
	return nil
}

func namesOf(workloads []*workload) string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.Name())
	}
	return strings.Join(names, ", ")
}

// behindService finds service, port and workload.
func (r *interceptReconciler) behindService(ctx context.Context, i *detour.Intercept) (*workload, error) {
	var svc corev1.Service
	if err := r.Get(ctx, client.ObjectKey{Namespace: i.Namespace, Name: i.Spec.Service}, &svc); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, refuse(detour.ReasonServiceNotFound, "service %s does not exist in namespace %s", i.Spec.Service, i.Namespace)
		}
		return nil, err
	}
	port, err := workloads.ServicePort(&svc, i.Spec.Port, i.Spec.Protocol)
	if err != nil && i.Spec.Mode != detour.ModeIngest { // which needs no port
		return nil, refusePort(err)
	}
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		_, err := inject.PlanPort(&svc, port, &corev1.PodTemplateSpec{})
		return nil, refuse(detour.ReasonUnsupported, "%s", err)
	}
	found, err := r.workloads(ctx, i.Namespace, func(w *workloads.Workload) bool { return w.SelectedBy(svc.Spec.Selector) })
	if err != nil {
		return nil, err
	}
	switch len(found) {
	case 0:
		return nil, refuse(detour.ReasonNoWorkload, "no %s stands behind service %s", r.kinds(), svc.Name)
	case 1:
	default:
		return nil, refuse(detour.ReasonManyWorkloads, "service %s has several workloads (%s): intercept a service that selects one of them", svc.Name, namesOf(found))
	}
	w := found[0]
	if err := w.knownTemplate(); err != nil {
		return nil, err
	}
	if w.leftOut, err = r.leftOut(ctx, w, &svc); err != nil {
		return nil, err
	}
	w.servicePort = port.Port
	if port.AppProtocol != nil {
		w.appProtocol = *port.AppProtocol
	}
	if w.port, err = inject.PlanPort(&svc, port, w.Template); err != nil && i.Spec.Mode != detour.ModeIngest {
		return nil, refuse(detour.ReasonUnsupported, "%s", err)
	}
	if i.Spec.Mode == detour.ModeIngest {
		return w, nil
	}
	return w, r.leaveAlone(ctx, w)
}

// refusePort turns an error of workloads.ServicePort into the refusal of an intercept.
func refusePort(err error) error {
	if errors.Is(err, workloads.ErrPortAmbiguous) {
		return refuse(detour.ReasonPortAmbiguous, "%s", err)
	}
	return refuse(detour.ReasonPortNotFound, "%s", err)
}

// rolledOut says whether every wanted pod is of the newest template and available.
func (w *workload) rolledOut() (done bool, waiting string) {
	var generation, observed int64
	var want, updated, total, available int32
	switch o := w.Object.(type) {
	case *appsv1.Deployment:
		want = 1
		if o.Spec.Replicas != nil {
			want = *o.Spec.Replicas
		}
		generation, observed = o.Generation, o.Status.ObservedGeneration
		updated, total, available = o.Status.UpdatedReplicas, o.Status.Replicas, o.Status.AvailableReplicas
		for _, c := range o.Status.Conditions {
			if (c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue) || (c.Type == appsv1.DeploymentProgressing && c.Status == corev1.ConditionFalse) {
				waiting = c.Message
			}
		}
	case *appsv1.StatefulSet:
		want = 1
		if o.Spec.Replicas != nil {
			want = *o.Spec.Replicas
		}
		generation, observed = o.Generation, o.Status.ObservedGeneration
		updated, total, available = o.Status.UpdatedReplicas, o.Status.Replicas, o.Status.AvailableReplicas
		if o.Status.UpdateRevision == o.Status.CurrentRevision {
			updated = total
		}
	case *appsv1.DaemonSet:
		generation, observed = o.Generation, o.Status.ObservedGeneration
		want, updated, total, available = o.Status.DesiredNumberScheduled, o.Status.UpdatedNumberScheduled, o.Status.CurrentNumberScheduled, o.Status.NumberAvailable
	case *argo.Rollout:
		// Pods of several releases serve beside each other, for as long as it pleases their owner: it is the pods that tell.
		return o.Observed() && o.Status.AvailableReplicas >= o.Wants(), o.Status.Message
	}
	if observed < generation {
		return false, waiting
	}
	return updated >= want && total <= want && available >= want, waiting
}

// available is how many pods serve, by the word of the workload's own controller.
func (w *workload) available() int {
	switch o := w.Object.(type) {
	case *appsv1.Deployment:
		return int(o.Status.AvailableReplicas)
	case *appsv1.StatefulSet:
		return int(o.Status.AvailableReplicas)
	case *appsv1.DaemonSet:
		return int(o.Status.NumberAvailable)
	case *argo.Rollout:
		return int(o.Status.AvailableReplicas)
	}
	return 0
}

// pods are the workload's pods that still run, those that are ending included.
func (r *interceptReconciler) pods(ctx context.Context, w *workload) ([]corev1.Pod, error) {
	var list corev1.PodList
	if err := r.List(ctx, &list, client.InNamespace(w.Object.GetNamespace()), client.MatchingLabelsSelector{Selector: w.Selector}); err != nil {
		return nil, err
	}
	return w.Running(list.Items), nil
}

// leaveAlone refuses a port that is to be left alone for what only the pods themselves have.
func (r *interceptReconciler) leaveAlone(ctx context.Context, w *workload) error {
	pods, err := r.pods(ctx, w)
	if err != nil {
		return err
	}
	if why := w.PortObstacle(pods, w.port); why != "" {
		return refuse(detour.ReasonUnsupported, "%s", why)
	}
	return nil
}
