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

// A container stays replaced while an intercept replaces it or an intercept that was not reconciled
// yet may do so.
func TestReplaced(t *testing.T) {
	deployment := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "worker"}}
	worker := &workload{Workload: &workloads.Workload{Kind: "Deployment", Object: deployment}}
	expires := func(ttl time.Duration) func(*detour.Intercept) {
		return func(i *detour.Intercept) { i.Spec.TTL = &metav1.Duration{Duration: ttl} }
	}
	assert.False(t, replaced(nil, worker, "app", now))
	for name, c := range map[string]struct {
		change func(*detour.Intercept)
		want   bool
	}{
		"active": {change: func(*detour.Intercept) {}, want: true},
		"its laptop is gone": {
			change: func(i *detour.Intercept) { i.Status.Phase = detour.PhaseLaptopGone }, want: true,
		},
		"not reconciled yet": {change: func(i *detour.Intercept) { i.Status = detour.InterceptStatus{} }, want: true},
		"another container":  {change: func(i *detour.Intercept) { i.Status.Container = "log" }, want: false},
		"another workload":   {change: func(i *detour.Intercept) { i.Status.Workload.Name = "mailer" }, want: false},
		"another kind": {
			change: func(i *detour.Intercept) { i.Status.Workload.Kind = "StatefulSet" }, want: false,
		},
		"another namespace": {change: func(i *detour.Intercept) { i.Namespace = "other" }, want: false},
		"another mode":      {change: func(i *detour.Intercept) { i.Spec.Mode = detour.ModeIntercept }, want: false},
		"suspended":         {change: func(i *detour.Intercept) { i.Spec.Suspend = true }, want: false},
		"refused": {
			change: func(i *detour.Intercept) { i.Status.Phase = detour.PhaseRefused }, want: false,
		},
		"being deleted": {
			change: func(i *detour.Intercept) { i.DeletionTimestamp = ptr(metav1.Now()) }, want: false,
		},
		"expired":         {change: expires(time.Minute), want: false},
		"not expired yet": {change: expires(2 * time.Hour), want: true},
	} {
		t.Run(name, func(t *testing.T) {
			i := detour.Intercept{ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)),
			}}
			i.Spec.Mode = detour.ModeReplace
			i.Status = detour.InterceptStatus{
				Workload:  &detour.WorkloadRef{Kind: "Deployment", Name: "worker"},
				Container: "app", Phase: detour.PhaseActive,
			}
			c.change(&i)
			assert.Equal(t, c.want, replaced([]detour.Intercept{i}, worker, "app", now))
		})
	}
}
