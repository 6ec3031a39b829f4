package manager

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// A workload is rolled out again for a pod of its newest template that has not what the template asks for, and for no other.
func TestMissed(t *testing.T) {
	port := inject.Port{Container: "app", Port: 8080, Via: inject.ViaNftables, AgentPort: 9900}
	plan := inject.Plan{Ports: []inject.Port{port}}
	pod := func(annotation, authority string) corev1.Pod {
		p := corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
		if annotation != "" {
			p.Annotations = map[string]string{inject.Annotation: annotation}
		}
		if authority != "" {
			require.NoError(t, inject.Mutate(&p, plan, inject.Options{CA: []byte(authority)}))
		}
		return p
	}
	ending := pod(plan.String(), "")
	ending.DeletionTimestamp = &metav1.Time{}
	for name, c := range map[string]struct {
		pod    corev1.Pod
		missed bool
	}{
		"as asked for":                   {pod(plan.String(), "own"), false},
		"made without the webhook":       {pod(plan.String(), ""), true},
		"of another traffic-manager":     {pod(plan.String(), "another"), true},
		"ending":                         {ending, false},
		"of a template before":           {pod("", ""), false},
		"of a template before, a plan's": {pod(inject.Plan{Restart: "before"}.String(), "another"), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &workload{Workload: &workloads.Workload{Kind: "Deployment", Object: &appsv1.Deployment{}}, port: port, authority: []byte("own")}
			missed := w.missed(plan, []corev1.Pod{pod(plan.String(), "own"), c.pod})
			require.Equal(t, c.missed, missed != nil)
		})
	}
}

// Nobody who leaves waits for the word of an agent that believes another traffic-manager.
func TestListens(t *testing.T) {
	port := inject.Port{Container: "app", Port: 8080, Via: inject.ViaNftables, AgentPort: 9900}
	for authority, listens := range map[string]bool{"own": true, "another": false, "": false} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}}}
		if authority != "" {
			require.NoError(t, inject.Mutate(p, inject.Plan{Ports: []inject.Port{port}}, inject.Options{CA: []byte(authority)}))
		}
		w := &workload{Workload: &workloads.Workload{Kind: "Deployment"}, port: port, authority: []byte("own")}
		require.Equal(t, listens, w.listens(p), authority)
	}
}

// Who waits for a new intercept has it tried again and again. One that is in force, or that a laptop takes up again, has it tried once for each
// release that was made while the webhook was away, and not for ever where the webhook never is.
func TestWorthwhile(t *testing.T) {
	now := time.Now()
	restart := func(ago time.Duration) inject.Plan {
		return inject.Plan{Restart: now.Add(-ago).UTC().Format(time.RFC3339)}
	}
	for name, c := range map[string]struct {
		kind       string
		asked      time.Duration // ago
		phase      detour.InterceptPhase
		plan       inject.Plan
		made       time.Duration // ago, the pod
		worthwhile bool
	}{
		"asked for a moment ago":                   {"Deployment", time.Second, detour.PhasePending, inject.Plan{}, 0, true},
		"and rolled out once more already":         {"Deployment", 2 * time.Minute, detour.PhasePending, restart(time.Minute), time.Minute, true},
		"for too long":                             {"Deployment", time.Hour, detour.PhasePending, restart(time.Minute), time.Minute, false},
		"in force, and released meanwhile":         {"Deployment", time.Hour, detour.PhaseActive, inject.Plan{}, time.Second, true},
		"in force for a moment":                    {"Deployment", time.Minute, detour.PhaseActive, inject.Plan{}, time.Second, true},
		"in force, and rolled out once more":       {"Deployment", time.Hour, detour.PhaseActive, restart(time.Minute), time.Minute, false},
		"in force, rolled out at another release":  {"Deployment", time.Hour, detour.PhaseActive, restart(24 * time.Hour), time.Minute, true},
		"taken up again, and released meanwhile":   {"Deployment", time.Hour, detour.PhaseLaptopGone, inject.Plan{}, time.Minute, true},
		"in force, and the template does not roll": {"StatefulSet", time.Hour, detour.PhaseActive, restart(time.Minute), time.Hour, false},
		"a Rollout":           {argo.Kind, time.Hour, detour.PhasePending, inject.Plan{}, time.Minute, true},
		"a Rollout, in force": {argo.Kind, time.Minute, detour.PhaseActive, inject.Plan{}, time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &workload{Workload: &workloads.Workload{Kind: c.kind}}
			i := &detour.Intercept{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-c.asked))}, Status: detour.InterceptStatus{Phase: c.phase}}
			missed := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-c.made))}}
			require.Equal(t, c.worthwhile, w.worthwhile(i, c.plan, missed))
		})
	}
}
