package intercept

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

const (
	// pollRollouts is how often the API server is queried for Argo Rollouts: they may be
	// installed or removed at any time.
	pollRollouts = 5 * time.Second
	// rolloutsTimeout limits the wait for a cache that is never filled because the Rollouts are
	// being removed.
	rolloutsTimeout = 10 * time.Second
)

// rollouts knows whether the cluster has Argo Rollouts, and watches them while it does.
type rollouts struct {
	discovery discovery.ServerResourcesInterface
	cache     cache.Cache
	watch     func() error // starts to reconcile when a Rollout changes
	installed atomic.Bool
	log       *slog.Logger
}

func (r *rollouts) follow(ctx context.Context) error {
	tick := time.NewTicker(pollRollouts)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.refresh(ctx); err != nil {
				r.log.Debug("looking for Argo Rollouts failed", "err", err)
			}
		}
	}
}

// refresh asks the API server whether it has Argo Rollouts.
func (r *rollouts) refresh(ctx context.Context) error {
	installed, err := argo.Installed(r.discovery)
	if err != nil || installed == r.installed.Load() {
		return err
	}
	r.log.Info("Argo Rollouts were installed or removed", "installed", installed)
	if !installed {
		r.installed.Store(false)
		return r.cache.RemoveInformer(ctx, argo.New())
	}
	if err := r.watch(); err != nil {
		return err
	}
	r.installed.Store(true)
	return nil
}

// listRollouts is the workloads.RolloutLister of the traffic-manager: it reads from the cache.
func (r *Reconciler) listRollouts(ctx context.Context, namespace string) ([]*argo.Rollout, error) {
	if !r.rollouts.installed.Load() {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(ctx, rolloutsTimeout)
	defer cancel()
	list := argo.NewList()
	if err := r.List(ctx, list, client.InNamespace(namespace)); err != nil {
		return nil, err
	}
	return argo.FromList(list), nil
}

// otherRelease returns the label value of the pods of a blue-green Rollout that serve only its
// other service. An intercept of the active service does not apply to the release in preview, nor
// the other way round. Pods that serve neither service stay in: they may have served until a moment
// ago.
func (r *Reconciler) otherRelease(ctx context.Context, w *workload, svc *corev1.Service) (hash string, err error) {
	o, ok := w.Object.(*argo.Rollout)
	if !ok || o.Other(svc.Name) == "" {
		return "", nil
	}
	var other corev1.Service
	if err := r.Get(ctx, client.ObjectKey{Namespace: svc.Namespace, Name: o.Other(svc.Name)}, &other); err != nil {
		return "", client.IgnoreNotFound(err)
	}
	if hash = other.Spec.Selector[argo.HashLabel]; hash == svc.Spec.Selector[argo.HashLabel] {
		return "", nil
	}
	return hash, nil
}

// PlanOfRollout returns the annotation of the Rollout that a new pod belongs to: the pods of a
// Rollout do not carry it, unlike those of other workloads. It reads without the cache, since the
// pod may be created for an annotation that was written a moment ago.
func (r *Reconciler) PlanOfRollout(ctx context.Context, namespace string, pod *corev1.Pod) (string, error) {
	name := argo.OwnerOf(pod)
	if name == "" || !r.rollouts.installed.Load() {
		return "", nil
	}
	o := argo.New()
	if err := r.config.Reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, o); err != nil {
		return "", client.IgnoreNotFound(err)
	}
	return o.GetAnnotations()[inject.Annotation], nil
}

// kinds names the kinds of this cluster that can be intercepted, for the user.
func (r *Reconciler) kinds() string {
	if r.rollouts.installed.Load() {
		return "Deployment, StatefulSet, DaemonSet or Rollout"
	}
	return "Deployment, StatefulSet or DaemonSet"
}

// annotationOf returns the plan of a workload's pods as its annotation has it, and an empty string
// for other objects.
func annotationOf(o client.Object) string {
	switch o := o.(type) {
	case *appsv1.Deployment:
		return o.Spec.Template.Annotations[inject.Annotation]
	case *appsv1.StatefulSet:
		return o.Spec.Template.Annotations[inject.Annotation]
	case *appsv1.DaemonSet:
		return o.Spec.Template.Annotations[inject.Annotation]
	case runtime.Unstructured: // a Rollout
		return o.(client.Object).GetAnnotations()[inject.Annotation]
	}
	return ""
}
