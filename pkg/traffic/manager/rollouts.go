package manager

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

const (
	// lookForRollouts is how often it is looked whether the cluster has Argo Rollouts by now, or still.
	lookForRollouts = 5 * time.Second
	// rolloutsTimeout limits the wait for a cache that will never be filled, because they are just being removed.
	rolloutsTimeout = 10 * time.Second
)

// rollouts knows whether the cluster has Argo Rollouts, and follows them while it does.
type rollouts struct {
	discovery discovery.ServerResourcesInterface
	cache     cache.Cache
	watch     func() error // begins to reconcile when one changes
	installed atomic.Bool
	log       *slog.Logger
}

func (r *rollouts) follow(ctx context.Context) error {
	tick := time.NewTicker(lookForRollouts)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := r.look(ctx); err != nil {
				r.log.Debug("looking for Argo Rollouts failed", "err", err)
			}
		}
	}
}

func (r *rollouts) look(ctx context.Context) error {
	installed, err := argo.Installed(r.discovery)
	if err != nil || installed == r.installed.Load() {
		return err
	}
	r.log.Info("the cluster's Argo Rollouts", "installed", installed)
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
func (r *interceptReconciler) listRollouts(ctx context.Context, namespace string) ([]*argo.Rollout, error) {
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

// leftOut are the pods of a blue-green Rollout that serve only its other service: an intercept of the active service is none of the release
// that is being looked at, nor the other way round. Pods that serve neither stay in: they may have served until a moment ago.
func (r *interceptReconciler) leftOut(ctx context.Context, w *workload, svc *corev1.Service) (hash string, err error) {
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

// planOfRollout is the annotation of the Rollout that a new pod is of: unlike other workloads' its pods do not bring it along. It is
// read past the cache, since what was annotated a moment ago is what the pod is made for.
func (r *interceptReconciler) planOfRollout(ctx context.Context, namespace string, pod *corev1.Pod) (string, error) {
	name := argo.OwnerOf(pod)
	if name == "" || !r.rollouts.installed.Load() {
		return "", nil
	}
	o := argo.New()
	if err := r.reader.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, o); err != nil {
		return "", client.IgnoreNotFound(err)
	}
	return o.GetAnnotations()[inject.Annotation], nil
}

// annotateRollout writes the plan, and has new pods made with it.
func (r *interceptReconciler) annotateRollout(ctx context.Context, w *workload, plan any) error {
	patch, err := argo.AnnotateAndRestart(w.Object.GetResourceVersion(), inject.Annotation, plan, time.Now())
	if err != nil {
		return fmt.Errorf("encode the patch: %w", err)
	}
	o := argo.New()
	o.SetNamespace(w.Object.GetNamespace())
	o.SetName(w.Object.GetName())
	if err := r.Patch(ctx, o, client.RawPatch(types.MergePatchType, patch)); err != nil {
		return fmt.Errorf("annotate %s: %w", w.Name(), err)
	}
	return nil
}

// kinds are those of the cluster's that can be intercepted, for the user.
func (r *interceptReconciler) kinds() string {
	if r.rollouts.installed.Load() {
		return "Deployment, StatefulSet, DaemonSet or Rollout"
	}
	return "Deployment, StatefulSet or DaemonSet"
}

// annotationOf is the plan of a workload's pods, as it is annotated; nothing for other objects.
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
