package manager

import (
	"context"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
)

// mayRestore says whether what happened to an object may be the end of a replacement, or its trace that a manager finds when it starts.
func mayRestore(o client.Object) bool {
	if i, ok := o.(*detour.Intercept); ok {
		return i.Spec.Mode == detour.ModeReplace
	}
	return len(replacedIn(o)) > 0
}

// replacedIn are the containers of a workload's new pods that do not run.
func replacedIn(o client.Object) []string {
	plan, err := inject.ParsePlan(annotationOf(o))
	if err != nil {
		return nil
	}
	return plan.Replaced
}

// restore lets replaced containers run again that no intercept replaces any longer, whatever ended it: leave, the end of its time or of
// its session, a deletion while no traffic-manager ran.
func (r *interceptReconciler) restore(ctx context.Context) error {
	held, err := r.workloads(ctx, "", func(w *workloads.Workload) bool { return len(replacedIn(w.Object)) > 0 })
	if err != nil || len(held) == 0 {
		return err
	}
	// Past the cache: an intercept that was made a moment ago counts.
	var all detour.InterceptList
	if err := r.reader.List(ctx, &all); err != nil {
		return fmt.Errorf("list the intercepts: %w", err)
	}
	var failures []error
	for _, w := range held {
		plan, err := inject.ParsePlan(annotationOf(w.Object))
		if err != nil {
			return err
		}
		wanted := plan.Restoring(func(container string) bool { return replaced(all.Items, w, container) })
		if len(wanted.Replaced) == len(plan.Replaced) {
			continue
		}
		r.options.Log.Info("restoring what is no longer replaced", "namespace", w.Object.GetNamespace(), "workload", w.Name())
		failures = append(failures, r.annotate(ctx, w, wanted))
	}
	return errors.Join(failures...)
}

// replaced says whether one of the intercepts wants a container not to run. One that is not looked at yet may want any.
func replaced(intercepts []detour.Intercept, w *workload, container string) bool {
	for n := range intercepts {
		i := &intercepts[n]
		over, _ := expired(i)
		if i.Namespace != w.Object.GetNamespace() || i.Spec.Mode != detour.ModeReplace || i.Spec.Suspend || over || !i.DeletionTimestamp.IsZero() || i.Status.Phase == detour.PhaseRefused {
			continue
		}
		if i.Status.Workload == nil || (*i.Status.Workload == detour.WorkloadRef{Kind: w.Kind, Name: w.Object.GetName()} && i.Status.Container == container) {
			return true
		}
	}
	return false
}

// giveBack has the container run again and waits until it does in every pod. Until then the laptop answers for the others.
func (r *interceptReconciler) giveBack(ctx context.Context, i *detour.Intercept, target *workload) error {
	if err := r.restore(ctx); err != nil {
		return err
	}
	var all detour.InterceptList
	if err := r.reader.List(ctx, &all, client.InNamespace(i.Namespace)); err != nil {
		return fmt.Errorf("list the intercepts: %w", err)
	}
	if replaced(all.Items, target, target.container) { // for another port
		return r.suspend(ctx, i, target)
	}
	pods, err := r.pods(ctx, target)
	if err != nil {
		return err
	}
	idle := 0
	for _, p := range pods {
		if inject.IsReplaced(&p, target.container) {
			idle++
		}
	}
	if done, _ := target.rolledOut(); !done || idle > 0 {
		message := fmt.Sprintf("rolling out %s with its own container %s (%d pods still without)", target.Name(), target.container, idle)
		if why := workloads.StartFailure(pods); why != "" {
			message += ": " + why
		}
		set(i, detour.PhaseSuspending, metav1.ConditionFalse, detour.ReasonRollingOut, message)
		return nil
	}
	return r.suspend(ctx, i, target)
}
