package intercept

import (
	"context"
	"errors"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
)

// workload is a workload and what an intercept needs of it.
type workload struct {
	*workloads.Workload
	servicePort int32
	appProtocol string      // of the service's port
	port        inject.Port // zero if the intercept names the workload, not a service
	container   string      // the one that is replaced, or whose environment is read
	attach      bool        // running pods get the agent
	authority   []byte      // that this traffic-manager's agents trust, PEM
	leftOut     string      // argo.HashLabel of the pods that do not serve the intercepted service
}

// resolve finds the workload of an intercept and what of it is intercepted. If the user has to
// change something first, the error is a Refusal.
func (r *Reconciler) resolve(ctx context.Context, i *detour.Intercept) (*workload, error) {
	find := r.behindService
	if i.Spec.Workload != nil {
		find = r.byName
	}
	w, err := find(ctx, i)
	if err != nil {
		return nil, err
	}
	w.attach, w.authority = i.Spec.Attach, r.config.Inject.CA
	if i.Spec.Mode == detour.ModeReplace || i.Spec.Mode == detour.ModeIngest {
		if w.container, err = inject.PickContainer(w.Template, i.Spec.Container, w.port.Port); err != nil {
			return nil, refuse(detour.ReasonWhichContainer, "%s: %s", w.Name(), err)
		}
	}
	if i.Spec.Mode == detour.ModeIngest {
		return w, nil
	}
	// An active intercept needs no rollout.
	if why := w.RolloutObstacle(); why != "" && !i.Spec.Attach && i.Status.Phase != detour.PhaseActive {
		if i.Spec.Mode != detour.ModeReplace && w.port.Protocol == "" && i.Spec.TLS == nil {
			why += "; or use --attach, which needs no new pods"
		}
		return nil, refuse(detour.ReasonUnsupported, "%s", why)
	}
	return w, nil
}

// byName finds a workload without looking at services. A name without a kind must not be that of a
// service too: its traffic would reach nobody.
func (r *Reconciler) byName(ctx context.Context, i *detour.Intercept) (*workload, error) {
	ref := i.Spec.Workload
	if ref.Kind == "" {
		var svc corev1.Service
		err := r.Get(ctx, client.ObjectKey{Namespace: i.Namespace, Name: ref.Name}, &svc)
		if err == nil && len(svc.Spec.Ports) > 0 {
			return nil, refuse(detour.ReasonPortAmbiguous, "%s is also a service: add --port LOCAL to receive its "+
				"traffic, or name the workload, as in deployment/%s, whose traffic then reaches nobody",
				ref.Name, ref.Name)
		}
		if client.IgnoreNotFound(err) != nil {
			return nil, err
		}
	}
	all, err := r.workloads(ctx, i.Namespace)
	if err != nil {
		return nil, err
	}
	found := workloads.Named(all, ref.Kind, ref.Name)
	switch {
	case len(found) > 1:
		return nil, refuse(detour.ReasonManyWorkloads, "several workloads are called %s: use one of %s",
			ref.Name, workloads.Names(found))
	case len(found) == 1 && found[0].TemplateOf != "":
		return nil, refuse(detour.ReasonNoWorkload,
			"%s has no pods, it is only the template of rollout/%s: intercept rollout/%s instead",
			found[0].Name(), found[0].TemplateOf, found[0].TemplateOf)
	case len(found) == 1:
		w := &workload{Workload: found[0]}
		return w, w.checkTemplate()
	case ref.Kind == "":
		return nil, refuse(detour.ReasonNoWorkload, "there is no %s %s in namespace %s", r.kinds(),
			ref.Name, i.Namespace)
	}
	return nil, refuse(detour.ReasonNoWorkload, "%s/%s does not exist in namespace %s",
		strings.ToLower(ref.Kind), ref.Name, i.Namespace)
}

// workloads returns the workloads of a namespace, or of all namespaces if it is empty.
func (r *Reconciler) workloads(ctx context.Context, namespace string) ([]*workloads.Workload, error) {
	return workloads.List(ctx, r, namespace, r.listRollouts)
}

// checkTemplate refuses a Rollout whose pod template detour cannot read.
func (w *workload) checkTemplate() error {
	if why := w.TemplateObstacle(); why != "" {
		return refuse(detour.ReasonUnsupported, "%s", why)
	}
	return nil
}

// behindService finds the workload behind a service and the port that leads to it.
func (r *Reconciler) behindService(ctx context.Context, i *detour.Intercept) (*workload, error) {
	ingest := i.Spec.Mode == detour.ModeIngest // which needs no port
	var svc corev1.Service
	if err := r.Get(ctx, client.ObjectKey{Namespace: i.Namespace, Name: i.Spec.Service}, &svc); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, refuse(detour.ReasonServiceNotFound, "service %s does not exist in namespace %s",
				i.Spec.Service, i.Namespace)
		}
		return nil, err
	}
	port, err := workloads.ServicePort(&svc, i.Spec.Port, i.Spec.Protocol)
	if err != nil && !ingest {
		return nil, refusePort(err)
	}
	if len(svc.Spec.Selector) == 0 || svc.Spec.Type == corev1.ServiceTypeExternalName {
		_, err := inject.PlanPort(&svc, port, &corev1.PodTemplateSpec{})
		return nil, refuse(detour.ReasonUnsupported, "%s", err)
	}
	w, err := r.onlyWorkload(ctx, &svc)
	if err != nil {
		return nil, err
	}
	if w.leftOut, err = r.otherRelease(ctx, w, &svc); err != nil {
		return nil, err
	}
	w.servicePort = port.Port
	if port.AppProtocol != nil {
		w.appProtocol = *port.AppProtocol
	}
	if w.port, err = inject.PlanPort(&svc, port, w.Template); err != nil && !ingest {
		return nil, refuse(detour.ReasonUnsupported, "%s", err)
	}
	if ingest {
		return w, nil
	}
	return w, r.checkRunningPods(ctx, w)
}

// onlyWorkload returns the one workload whose pods a service selects.
func (r *Reconciler) onlyWorkload(ctx context.Context, svc *corev1.Service) (*workload, error) {
	all, err := r.workloads(ctx, svc.Namespace)
	if err != nil {
		return nil, err
	}
	switch found := workloads.Behind(all, svc.Spec.Selector); len(found) {
	case 0:
		return nil, refuse(detour.ReasonNoWorkload, "no %s stands behind service %s", r.kinds(), svc.Name)
	case 1:
		w := &workload{Workload: found[0]}
		return w, w.checkTemplate()
	default:
		return nil, refuse(detour.ReasonManyWorkloads,
			"service %s has several workloads (%s): intercept a service that selects one of them",
			svc.Name, workloads.Names(found))
	}
}

// refusePort turns an error of workloads.ServicePort into the refusal of an intercept.
func refusePort(err error) error {
	if errors.Is(err, workloads.ErrPortAmbiguous) {
		return refuse(detour.ReasonPortAmbiguous, "%s", err)
	}
	return refuse(detour.ReasonPortNotFound, "%s", err)
}

// pods returns the workload's pods that run, those that are ending included.
func (r *Reconciler) pods(ctx context.Context, w *workload) ([]corev1.Pod, error) {
	var list corev1.PodList
	err := r.List(ctx, &list, client.InNamespace(w.Object.GetNamespace()),
		client.MatchingLabelsSelector{Selector: w.Selector})
	if err != nil {
		return nil, err
	}
	return w.Running(list.Items), nil
}

// checkRunningPods refuses a port in front of which the agent must not stand, for a reason that
// only the running pods show.
func (r *Reconciler) checkRunningPods(ctx context.Context, w *workload) error {
	pods, err := r.pods(ctx, w)
	if err != nil {
		return err
	}
	if why := w.PortObstacle(pods, w.port); why != "" {
		return refuse(detour.ReasonUnsupported, "%s", why)
	}
	return nil
}
