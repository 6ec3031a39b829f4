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

// Only a pod of the newest template that lacks what the template asks for is a reason to roll out
// again.
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
		"with the agent":              {pod: pod(plan.String(), "own"), missed: false},
		"created without the webhook": {pod: pod(plan.String(), ""), missed: true},
		"of another traffic-manager":  {pod: pod(plan.String(), "another"), missed: true},
		"ending":                      {pod: ending, missed: false},
		"of an older template":        {pod: pod("", ""), missed: false},
		"of an older template with a plan": {
			pod: pod(inject.Plan{Restart: "before"}.String(), "another"), missed: false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &workload{
				Workload: &workloads.Workload{Kind: "Deployment", Object: &appsv1.Deployment{}},
				port:     port, authority: []byte("own"),
			}
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
			plan := inject.Plan{Ports: []inject.Port{port}}
			require.NoError(t, inject.Mutate(p, plan, inject.Options{CA: []byte(authority)}))
		}
		w := &workload{Workload: &workloads.Workload{Kind: "Deployment"}, port: port, authority: []byte("own")}
		require.Equal(t, listens, w.listens(p), authority)
	}
}

// A rollout is repeated while a user waits for a new intercept. For an active one, and for one
// whose laptop is back, it is repeated once for each release that happened while the webhook was
// unreachable.
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
		"created a moment ago": {
			kind: "Deployment", age: time.Second, phase: detour.PhasePending, plan: inject.Plan{}, podAge: 0,
			want: true,
		},
		"created a moment ago, and repeated once": {
			kind: "Deployment", age: 2 * time.Minute, phase: detour.PhasePending, plan: restart(time.Minute),
			podAge: time.Minute, want: true,
		},
		"pending for too long": {
			kind: "Deployment", age: time.Hour, phase: detour.PhasePending, plan: restart(time.Minute),
			podAge: time.Minute, want: false,
		},
		"active, and released meanwhile": {
			kind: "Deployment", age: time.Hour, phase: detour.PhaseActive, plan: inject.Plan{},
			podAge: time.Second, want: true,
		},
		"active for a moment": {
			kind: "Deployment", age: time.Minute, phase: detour.PhaseActive, plan: inject.Plan{},
			podAge: time.Second, want: true,
		},
		"active, and repeated once": {
			kind: "Deployment", age: time.Hour, phase: detour.PhaseActive, plan: restart(time.Minute),
			podAge: time.Minute, want: false,
		},
		"active, repeated for another release": {
			kind: "Deployment", age: time.Hour, phase: detour.PhaseActive, plan: restart(24 * time.Hour),
			podAge: time.Minute, want: true,
		},
		"laptop is back, released meanwhile": {
			kind: "Deployment", age: time.Hour, phase: detour.PhaseLaptopGone, plan: inject.Plan{},
			podAge: time.Minute, want: true,
		},
		"active, and the template does not roll": {
			kind: "StatefulSet", age: time.Hour, phase: detour.PhaseActive, plan: restart(time.Minute),
			podAge: time.Hour, want: false,
		},
		"a Rollout": {
			kind: argo.Kind, age: time.Hour, phase: detour.PhasePending, plan: inject.Plan{},
			podAge: time.Minute, want: true,
		},
		"a Rollout, active": {
			kind: argo.Kind, age: time.Minute, phase: detour.PhaseActive, plan: inject.Plan{},
			podAge: time.Minute, want: false,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := &workload{Workload: &workloads.Workload{Kind: c.kind}}
			i := &detour.Intercept{
				ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-c.age))},
				Status:     detour.InterceptStatus{Phase: c.phase},
			}
			missed := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{CreationTimestamp: metav1.NewTime(now.Add(-c.podAge))}}
			require.Equal(t, c.want, w.worthRepeating(i, c.plan, missed, now))
		})
	}
}

// A rollout is over when every desired pod is of the newest template and available, and no old pod
// remains.
func TestRolledOut(t *testing.T) {
	deployment := func(change func(*appsv1.Deployment)) client.Object {
		d := &appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Generation: 3}, Spec: appsv1.DeploymentSpec{Replicas: ptr(int32(2))},
		}
		d.Status = appsv1.DeploymentStatus{ObservedGeneration: 3, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2}
		change(d)
		return d
	}
	stateful := func(change func(*appsv1.StatefulSet)) client.Object {
		s := &appsv1.StatefulSet{
			ObjectMeta: metav1.ObjectMeta{Generation: 3}, Spec: appsv1.StatefulSetSpec{Replicas: ptr(int32(2))},
		}
		s.Status = appsv1.StatefulSetStatus{
			ObservedGeneration: 3, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2,
			CurrentRevision: "a", UpdateRevision: "b",
		}
		change(s)
		return s
	}
	daemon := func(change func(*appsv1.DaemonSet)) client.Object {
		d := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Generation: 3}}
		d.Status = appsv1.DaemonSetStatus{
			ObservedGeneration: 3, DesiredNumberScheduled: 2, CurrentNumberScheduled: 2,
			UpdatedNumberScheduled: 2, NumberAvailable: 2,
		}
		change(d)
		return d
	}
	rollout := func(change func(*argo.Rollout)) client.Object {
		u := argo.New()
		u.SetGeneration(3)
		r := &argo.Rollout{
			Unstructured: u, Spec: argo.Spec{Replicas: ptr(int32(2))},
			Status: argo.Status{ObservedGeneration: "3", AvailableReplicas: 2},
		}
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
		"deployment": {object: deployment(func(*appsv1.Deployment) {}), want: true},
		"deployment, not observed yet": {
			object: deployment(func(d *appsv1.Deployment) { d.Status.ObservedGeneration = 2 }), want: false,
		},
		"deployment, an old pod remains": {
			object: deployment(func(d *appsv1.Deployment) { d.Status.Replicas = 3 }), want: false,
		},
		"deployment, a new pod is missing": {
			object: deployment(func(d *appsv1.Deployment) { d.Status.UpdatedReplicas = 1 }), want: false,
		},
		"deployment, one is not ready": {
			object: deployment(func(d *appsv1.Deployment) { d.Status.AvailableReplicas = 1 }), want: false,
		},
		"deployment without replicas": {object: deployment(func(d *appsv1.Deployment) {
			d.Spec.Replicas, d.Status = ptr(int32(0)), appsv1.DeploymentStatus{ObservedGeneration: 3}
		}), want: true},
		"deployment with the default of one replica": {object: deployment(func(d *appsv1.Deployment) {
			d.Spec.Replicas, d.Status = nil, appsv1.DeploymentStatus{ObservedGeneration: 3}
		}), want: false},
		"deployment, no quota": {
			object: failed(appsv1.DeploymentReplicaFailure, corev1.ConditionTrue), want: false,
			waiting: "exceeded quota",
		},
		"deployment, over its deadline": {
			object: failed(appsv1.DeploymentProgressing, corev1.ConditionFalse), want: false,
			waiting: "exceeded quota",
		},
		"deployment, still progressing": {
			object: failed(appsv1.DeploymentProgressing, corev1.ConditionTrue), want: false,
		},

		"stateful set": {object: stateful(func(*appsv1.StatefulSet) {}), want: true},
		"stateful set, half done": {
			object: stateful(func(s *appsv1.StatefulSet) { s.Status.UpdatedReplicas = 1 }), want: false,
		},
		"stateful set, not observed yet": {
			object: stateful(func(s *appsv1.StatefulSet) { s.Status.ObservedGeneration = 2 }), want: false,
		},
		"stateful set, one is not ready": {
			object: stateful(func(s *appsv1.StatefulSet) { s.Status.AvailableReplicas = 1 }), want: false,
		},
		// When a rollout ends the controller makes both revisions equal and counts no pod as
		// updated.
		"stateful set, finished long ago": {
			object: stateful(
				func(s *appsv1.StatefulSet) { s.Status.CurrentRevision, s.Status.UpdatedReplicas = "b", 0 }),
			want: true,
		},

		"rollout":                   {object: rollout(func(*argo.Rollout) {}), want: true},
		"rollout, not observed yet": {object: rollout(func(r *argo.Rollout) { r.SetGeneration(4) }), want: false},
		"rollout, one is not ready": {object: rollout(func(r *argo.Rollout) {
			r.Status.AvailableReplicas, r.Status.Message = 1, "more replicas need to be updated"
		}), want: false, waiting: "more replicas need to be updated"},
		"rollout, two releases serve": {
			object: rollout(
				func(r *argo.Rollout) { r.Status.AvailableReplicas, r.Status.Message = 3, "CanaryPauseStep" }),
			want: true, waiting: "CanaryPauseStep",
		},

		"daemon set": {object: daemon(func(*appsv1.DaemonSet) {}), want: true},
		"daemon set, half done": {
			object: daemon(func(d *appsv1.DaemonSet) { d.Status.UpdatedNumberScheduled = 1 }), want: false,
		},
		"daemon set, not observed yet": {
			object: daemon(func(d *appsv1.DaemonSet) { d.Status.ObservedGeneration = 2 }), want: false,
		},
		"daemon set, one is not available": {
			object: daemon(func(d *appsv1.DaemonSet) { d.Status.NumberAvailable = 1 }), want: false,
		},
		"daemon set without nodes": {
			object: daemon(func(d *appsv1.DaemonSet) { d.Status = appsv1.DaemonSetStatus{ObservedGeneration: 3} }),
			want:   true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			done, waiting := (&workload{Workload: &workloads.Workload{Object: c.object}}).rolledOut()
			assert.Equal(t, c.want, done)
			assert.Equal(t, c.waiting, waiting)
		})
	}
}

func ptr[T any](v T) *T { return &v }
