package intercept

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// Only a pod of the newest template that lacks what the template asks for is a reason to roll out again.
func TestMissedPod(t *testing.T) {
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
		"with the agent":                   {pod(plan.String(), "own"), false},
		"created without the webhook":      {pod(plan.String(), ""), true},
		"of another traffic-manager":       {pod(plan.String(), "another"), true},
		"ending":                           {ending, false},
		"of an older template":             {pod("", ""), false},
		"of an older template with a plan": {pod(inject.Plan{Restart: "before"}.String(), "another"), false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &workload{Workload: &workloads.Workload{Kind: "Deployment", Object: &appsv1.Deployment{}}, port: port, authority: []byte("own")}
			missed := w.missedPod(plan, []corev1.Pod{pod(plan.String(), "own"), c.pod})
			require.Equal(t, c.missed, missed != nil)
		})
	}
}

// `detour leave` does not wait for an agent that follows another traffic-manager.
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

// A rollout is repeated while a user waits for a new intercept. For an active one, and for one whose laptop
// is back, it is repeated once for each release that was made while the webhook was unreachable.
func TestWorthRepeating(t *testing.T) {
	now := time.Now()
	restart := func(ago time.Duration) inject.Plan {
		return inject.Plan{Restart: now.Add(-ago).UTC().Format(time.RFC3339)}
	}
	for name, c := range map[string]struct {
		kind   string
		age    time.Duration // of the intercept
		phase  detour.InterceptPhase
		plan   inject.Plan
		podAge time.Duration
		want   bool
	}{
		"created a moment ago":                    {"Deployment", time.Second, detour.PhasePending, inject.Plan{}, 0, true},
		"created a moment ago, and repeated once": {"Deployment", 2 * time.Minute, detour.PhasePending, restart(time.Minute), time.Minute, true},
		"pending for too long":                    {"Deployment", time.Hour, detour.PhasePending, restart(time.Minute), time.Minute, false},
		"active, and released meanwhile":          {"Deployment", time.Hour, detour.PhaseActive, inject.Plan{}, time.Second, true},
		"active for a moment":                     {"Deployment", time.Minute, detour.PhaseActive, inject.Plan{}, time.Second, true},
		"active, and repeated once":               {"Deployment", time.Hour, detour.PhaseActive, restart(time.Minute), time.Minute, false},
		"active, repeated for another release":    {"Deployment", time.Hour, detour.PhaseActive, restart(24 * time.Hour), time.Minute, true},
		"laptop is back, released meanwhile":      {"Deployment", time.Hour, detour.PhaseLaptopGone, inject.Plan{}, time.Minute, true},
		"active, and the template does not roll":  {"StatefulSet", time.Hour, detour.PhaseActive, restart(time.Minute), time.Hour, false},
		"a Rollout":                               {argo.Kind, time.Hour, detour.PhasePending, inject.Plan{}, time.Minute, true},
		"a Rollout, active":                       {argo.Kind, time.Minute, detour.PhaseActive, inject.Plan{}, time.Minute, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := &workload{Workload: &workloads.Workload{Kind: c.kind}}
			i := &detour.Intercept{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-c.age))}, Status: detour.InterceptStatus{Phase: c.phase}}
			missed := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-c.podAge))}}
			require.Equal(t, c.want, w.worthRepeating(i, c.plan, missed, now))
		})
	}
}

// A rollout is over when every desired pod is of the newest template and available, and no old pod remains.
func TestRolledOut(t *testing.T) {
	deployment := func(change func(*appsv1.Deployment)) client.Object {
		d := &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Generation: 3}, Spec: appsv1.DeploymentSpec{Replicas: ptr(int32(2))}}
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: 3, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}
		change(d)
		return d
	}
	stateful := func(change func(*appsv1.StatefulSet)) client.Object {
		s := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Generation: 3}, Spec: appsv1.StatefulSetSpec{Replicas: ptr(int32(2))}}
		s.Status = appsv1.StatefulSetStatus{ObservedGeneration: 3, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2, CurrentRevision: "a", UpdateRevision: "b"}
		change(s)
		return s
	}
	daemon := func(change func(*appsv1.DaemonSet)) client.Object {
		d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Generation: 3}}
		d.Status = appsv1.DaemonSetStatus{ObservedGeneration: 3, DesiredNumberScheduled: 2, CurrentNumberScheduled: 2, UpdatedNumberScheduled: 2, NumberAvailable: 2}
		change(d)
		return d
	}
	rollout := func(change func(*argo.Rollout)) client.Object {
		u := argo.New()
		u.SetGeneration(3)
		r := &argo.Rollout{Unstructured: u, Spec: argo.Spec{Replicas: ptr(int32(2))}, Status: argo.Status{ObservedGeneration: "3", AvailableReplicas: 2}}
		change(r)
		return r
	}
	failed := func(kind appsv1.DeploymentConditionType, status corev1.ConditionStatus) client.Object {
		return deployment(func(d *appsv1.Deployment) {
			d.Status.AvailableReplicas = 1
			d.Status.Conditions = []appsv1.DeploymentCondition{{Type: kind, Status: status, Message: "exceeded quota"}}
		})
	}
	for name, c := range map[string]struct {
		object  client.Object
		want    bool
		waiting string
	}{
		"deployment":                      {deployment(func(*appsv1.Deployment) {}), true, ""},
		"deployment, not yet looked at":   {deployment(func(d *appsv1.Deployment) { d.Status.ObservedGeneration = 2 }), false, ""},
		"deployment, an old pod is left":  {deployment(func(d *appsv1.Deployment) { d.Status.Replicas = 3 }), false, ""},
		"deployment, a new pod is absent": {deployment(func(d *appsv1.Deployment) { d.Status.UpdatedReplicas = 1 }), false, ""},
		"deployment, one is not ready":    {deployment(func(d *appsv1.Deployment) { d.Status.AvailableReplicas = 1 }), false, ""},
		"deployment of nothing": {deployment(func(d *appsv1.Deployment) {
			d.Spec.Replicas, d.Status = ptr(int32(0)), appsv1.DeploymentStatus{ObservedGeneration: 3}
		}), true, ""},
		"deployment of one by default": {deployment(func(d *appsv1.Deployment) {
			d.Spec.Replicas, d.Status = nil, appsv1.DeploymentStatus{ObservedGeneration: 3}
		}), false, ""},
		"deployment, no quota left":     {failed(appsv1.DeploymentReplicaFailure, corev1.ConditionTrue), false, "exceeded quota"},
		"deployment, over its deadline": {failed(appsv1.DeploymentProgressing, corev1.ConditionFalse), false, "exceeded quota"},
		"deployment, still progressing": {failed(appsv1.DeploymentProgressing, corev1.ConditionTrue), false, ""},

		"stateful set":                   {stateful(func(*appsv1.StatefulSet) {}), true, ""},
		"stateful set, half way":         {stateful(func(s *appsv1.StatefulSet) { s.Status.UpdatedReplicas = 1 }), false, ""},
		"stateful set, not yet seen":     {stateful(func(s *appsv1.StatefulSet) { s.Status.ObservedGeneration = 2 }), false, ""},
		"stateful set, one is not ready": {stateful(func(s *appsv1.StatefulSet) { s.Status.AvailableReplicas = 1 }), false, ""},
		// When a rollout ends the controller makes both revisions equal and counts no pod as updated.
		"stateful set, long since": {stateful(func(s *appsv1.StatefulSet) { s.Status.CurrentRevision, s.Status.UpdatedReplicas = "b", 0 }), true, ""},

		"rollout":                    {rollout(func(*argo.Rollout) {}), true, ""},
		"rollout, not yet looked at": {rollout(func(r *argo.Rollout) { r.SetGeneration(4) }), false, ""},
		"rollout, one is not ready": {rollout(func(r *argo.Rollout) {
			r.Status.AvailableReplicas, r.Status.Message = 1, "more replicas need to be updated"
		}), false, "more replicas need to be updated"},
		"rollout, two releases serve": {rollout(func(r *argo.Rollout) { r.Status.AvailableReplicas, r.Status.Message = 3, "CanaryPauseStep" }), true, "CanaryPauseStep"},

		"daemon set":                     {daemon(func(*appsv1.DaemonSet) {}), true, ""},
		"daemon set, half way":           {daemon(func(d *appsv1.DaemonSet) { d.Status.UpdatedNumberScheduled = 1 }), false, ""},
		"daemon set, not yet looked at":  {daemon(func(d *appsv1.DaemonSet) { d.Status.ObservedGeneration = 2 }), false, ""},
		"daemon set, a node is not done": {daemon(func(d *appsv1.DaemonSet) { d.Status.NumberAvailable = 1 }), false, ""},
		"daemon set without nodes":       {daemon(func(d *appsv1.DaemonSet) { d.Status = appsv1.DaemonSetStatus{ObservedGeneration: 3} }), true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			done, waiting := (&workload{Workload: &workloads.Workload{Object: c.object}}).rolledOut()
			assert.Equal(t, c.want, done)
			assert.Equal(t, c.waiting, waiting)
		})
	}
}

func ptr[T any](v T) *T { return &v }
