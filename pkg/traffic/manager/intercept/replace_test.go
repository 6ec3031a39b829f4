package intercept

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/workloads"
)

// A container stays replaced while an intercept replaces it or an intercept that was not reconciled yet
// may do so.
func TestReplaced(t *testing.T) {
	worker := &workload{Workload: &workloads.Workload{Kind: "Deployment", Object: &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "worker"}}}}
	intercept := func(change ...func(*detour.Intercept)) []detour.Intercept {
		i := detour.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", CreationTimestamp: metav1.NewTime(time.Now().Add(-time.Hour))}}
		i.Spec.Mode = detour.ModeReplace
		i.Status = detour.InterceptStatus{Workload: &detour.WorkloadRef{Kind: "Deployment", Name: "worker"}, Container: "app", Phase: detour.PhaseActive}
		for _, c := range change {
			c(&i)
		}
		return []detour.Intercept{i}
	}
	for name, c := range map[string]struct {
		intercepts []detour.Intercept
		want       bool
	}{
		"none":               {nil, false},
		"active":             {intercept(), true},
		"its laptop is gone": {intercept(func(i *detour.Intercept) { i.Status.Phase = detour.PhaseLaptopGone }), true},
		"not reconciled yet": {intercept(func(i *detour.Intercept) { i.Status = detour.InterceptStatus{} }), true},
		"another container":  {intercept(func(i *detour.Intercept) { i.Status.Container = "log" }), false},
		"another workload":   {intercept(func(i *detour.Intercept) { i.Status.Workload.Name = "mailer" }), false},
		"another kind":       {intercept(func(i *detour.Intercept) { i.Status.Workload.Kind = "StatefulSet" }), false},
		"another namespace":  {intercept(func(i *detour.Intercept) { i.Namespace = "other" }), false},
		"another mode":       {intercept(func(i *detour.Intercept) { i.Spec.Mode = detour.ModeIntercept }), false},
		"suspended":          {intercept(func(i *detour.Intercept) { i.Spec.Suspend = true }), false},
		"refused":            {intercept(func(i *detour.Intercept) { i.Status.Phase = detour.PhaseRefused }), false},
		"being deleted":      {intercept(func(i *detour.Intercept) { i.DeletionTimestamp = ptr(metav1.Now()) }), false},
		"expired":            {intercept(func(i *detour.Intercept) { i.Spec.TTL = &metav1.Duration{Duration: time.Minute} }), false},
		"not expired yet":    {intercept(func(i *detour.Intercept) { i.Spec.TTL = &metav1.Duration{Duration: 2 * time.Hour} }), true},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, replaced(c.intercepts, worker, "app", time.Now())) })
	}
}
