package intercept

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
)

// mayRestore reports whether a change of an object may be the end of a replacement, or the trace of
// one that a manager finds when it starts.
func mayRestore(o client.Object) bool {
	if i, ok := o.(*detour.Intercept); ok {
		return i.Spec.Mode == detour.ModeReplace
	}
	return len(replacedIn(o)) > 0
}

// replacedIn returns the containers that do not run in a workload's new pods.
func replacedIn(o client.Object) []string {
	plan, err := inject.ParsePlan(annotationOf(o))
	if err != nil {
		return nil
	}
	return plan.Replaced
}

// restore lets the containers run again that no intercept replaces any longer, whatever ended the
// intercept: leave, the end of its time to live or of its session, or a deletion while no
// traffic-manager ran.
func (r *Reconciler) restore(ctx context.Context) error {
	all, err := r.workloads(ctx, "")
	if err != nil {
		return err
	}
	var changed []*workload
	for _, w := range all {
		if len(replacedIn(w.Object)) > 0 {
			changed = append(changed, &workload{Workload: w})
		}
	}
	if len(changed) == 0 {
		return nil
	}
	// Without the cache: an intercept that was created a moment ago counts.
	var intercepts detour.InterceptList
	if err := r.config.Reader.List(ctx, &intercepts); err != nil {
		return fmt.Errorf("list the intercepts: %w", err)
	}
	now := time.Now()
	var failures []error
	for _, w := range changed {
		plan, err := inject.ParsePlan(annotationOf(w.Object))
		if err != nil {
			return err
		}
		next := plan.Restoring(func(container string) bool { return replaced(intercepts.Items, w, container, now) })
		if len(next.Replaced) == len(plan.Replaced) {
			continue
		}
		r.config.Log.Info("restoring containers that are no longer replaced",
			"namespace", w.Object.GetNamespace(), "workload", w.Name())
		failures = append(failures, r.annotate(ctx, w, next))
	}
	return errors.Join(failures...)
}

// replaced reports whether one of the intercepts replaces a container. An intercept that was not
// reconciled yet may replace any.
func replaced(intercepts []detour.Intercept, w *workload, container string, now time.Time) bool {
	for n := range intercepts {
		i := &intercepts[n]
		switch {
		case i.Namespace != w.Object.GetNamespace(), i.Spec.Mode != detour.ModeReplace, i.Spec.Suspend,
			expired(i, now), !i.DeletionTimestamp.IsZero(), i.Status.Phase == detour.PhaseRefused:
			continue
		case i.Status.Workload == nil:
			return true
		}
		ref := detour.WorkloadRef{Kind: w.Kind, Name: w.Object.GetName()}
		if *i.Status.Workload == ref && i.Status.Container == container {
			return true
		}
	}
	return false
}
