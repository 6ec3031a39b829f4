package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// Below v1 a minor version may change everything, from v1 on only a major one.
func TestCompatible(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"v0.1.0", "v0.1.0", true},
		{"v0.1.0", "v0.1.7", true},
		{"v0.1.0-dev", "v0.1.0", true},
		{"0.1.0", "v0.1.0", true},
		{"v0.1.0", "v0.2.0", false},
		{"v0.1.0", "v0.10.0", false},
		{"v1.0.0", "v1.9.3", true},
		{"v1.0.0", "v2.0.0", false},
		{"v1.0.0", "v10.0.0", false},
		{"v0.9.0", "v1.0.0", false},
		{"", "v0.1.0", false},
		{"dev", "v0.1.0", false},
	} {
		t.Run(c.a+" and "+c.b, func(t *testing.T) {
			assert.Equal(t, c.want, compatible(c.a, c.b))
			assert.Equal(t, c.want, compatible(c.b, c.a), "both ends must come to the same answer")
		})
	}
}

// Of two intercepts of one port exactly one is older, whoever asks.
func TestPrecedes(t *testing.T) {
	at := func(seconds int64, uid string) *detour.Intercept {
		return &detour.Intercept{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), CreationTimestamp: metav1.Unix(seconds, 0)}}
	}
	inForce := func(i *detour.Intercept) *detour.Intercept {
		i.Status.Phase = detour.PhaseActive
		return i
	}
	for name, c := range map[string]struct {
		a, b *detour.Intercept
		want bool
	}{
		"in force, in the same second": {inForce(at(1, "b")), at(1, "a"), true},
		"in force, though made after":  {inForce(at(2, "b")), at(1, "a"), true},
		"made before":                  {at(1, "b"), at(2, "a"), true},
		"made after":                   {at(2, "a"), at(1, "b"), false},
		"in the same second, by UID":   {at(1, "a"), at(1, "b"), true},
		"itself":                       {at(1, "a"), at(1, "a"), false},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, precedes(c.a, c.b))
			if c.a.UID != c.b.UID {
				assert.NotEqual(t, precedes(c.a, c.b), precedes(c.b, c.a))
			}
		})
	}
}

// A rollout is over when every wanted pod is of the newest template and available, and none is left of the old one.
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
