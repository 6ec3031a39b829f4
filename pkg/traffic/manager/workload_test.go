package manager

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

func TestServicePort(t *testing.T) {
	http, grpc := corev1.ServicePort{Name: "http", Port: 80}, corev1.ServicePort{Name: "grpc", Port: 9090}
	unnamed := corev1.ServicePort{Port: 8080}
	named := corev1.ServicePort{Name: "8080", Port: 81}
	number, name := func(n int32) *intstr.IntOrString { return ptr(intstr.FromInt32(n)) }, func(s string) *intstr.IntOrString { return ptr(intstr.FromString(s)) }
	for what, c := range map[string]struct {
		ports   []corev1.ServicePort
		wanted  *intstr.IntOrString
		want    corev1.ServicePort
		reason  string
		message string
	}{
		"by number":                {[]corev1.ServicePort{http, grpc}, number(9090), grpc, "", ""},
		"by name":                  {[]corev1.ServicePort{http, grpc}, name("http"), http, "", ""},
		"the only one":             {[]corev1.ServicePort{unnamed}, nil, unnamed, "", ""},
		"a name made of digits":    {[]corev1.ServicePort{named, unnamed}, name("8080"), named, "", ""},
		"its number, not its name": {[]corev1.ServicePort{named, unnamed}, number(8080), unnamed, "", ""},
		"not said which": {
			[]corev1.ServicePort{http, grpc},
			nil,
			corev1.ServicePort{},
			detour.ReasonPortAmbiguous, "service catalog has several ports, 80 (http), 9090 (grpc): say which, as in --port 8080:80",
		},
		"a number it has not": {[]corev1.ServicePort{http, unnamed}, number(81), corev1.ServicePort{}, detour.ReasonPortNotFound, "service catalog has no port 81: it has 80 (http), 8080"},
		"a name it has not":   {[]corev1.ServicePort{http}, name("web"), corev1.ServicePort{}, detour.ReasonPortNotFound, "service catalog has no port web: it has 80 (http)"},
		// Headless services and those of type ExternalName may have none.
		"no ports":                   {nil, nil, corev1.ServicePort{}, detour.ReasonPortNotFound, "service catalog has no ports: there is nothing to intercept"},
		"no ports, but one is asked": {nil, number(80), corev1.ServicePort{}, detour.ReasonPortNotFound, "service catalog has no ports: there is nothing to intercept"},
	} {
		t.Run(what, func(t *testing.T) {
			svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "catalog"}, Spec: corev1.ServiceSpec{Ports: c.ports}}
			got, err := servicePort(svc, c.wanted, "")
			assert.Equal(t, c.want, got)
			if c.reason == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, c.message)
			var r refusal
			require.ErrorAs(t, err, &r)
			assert.Equal(t, c.reason, r.reason)
		})
	}
}

// A number may be there for two protocols, as that of DNS is.
func TestServicePortProtocol(t *testing.T) {
	udp, tcp := corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, corev1.ServicePort{Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP}
	number, name := ptr(intstr.FromInt32(53)), ptr(intstr.FromString("dns"))
	for what, c := range map[string]struct {
		ports    []corev1.ServicePort
		wanted   *intstr.IntOrString
		protocol corev1.Protocol
		want     string
		message  string
	}{
		"by number and protocol":   {[]corev1.ServicePort{udp, tcp}, number, corev1.ProtocolTCP, "dns-tcp", ""},
		"by number and the other":  {[]corev1.ServicePort{udp, tcp}, number, corev1.ProtocolUDP, "dns", ""},
		"by name":                  {[]corev1.ServicePort{udp, tcp}, name, "", "dns", ""},
		"the only one":             {[]corev1.ServicePort{udp}, nil, "", "dns", ""},
		"the only one of it":       {[]corev1.ServicePort{udp, tcp}, nil, corev1.ProtocolUDP, "dns", ""},
		"by number alone":          {[]corev1.ServicePort{udp, tcp}, number, "", "", "service kube-dns has port 53 for several protocols, 53/UDP (dns), 53 (dns-tcp): say which, as in --port 8080:53/udp"},
		"of a protocol it has not": {[]corev1.ServicePort{tcp}, number, corev1.ProtocolUDP, "", "service kube-dns has no port 53/UDP: it has 53 (dns-tcp)"},
		"none of it":               {[]corev1.ServicePort{tcp}, nil, corev1.ProtocolUDP, "", "service kube-dns has no port for UDP: it has 53 (dns-tcp)"},
		"a name of another":        {[]corev1.ServicePort{udp, tcp}, name, corev1.ProtocolTCP, "", "service kube-dns has no port dns/TCP: it has 53/UDP (dns), 53 (dns-tcp)"},
	} {
		t.Run(what, func(t *testing.T) {
			got, err := servicePort(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "kube-dns"}, Spec: corev1.ServiceSpec{Ports: c.ports}}, c.wanted, c.protocol)
			if c.message != "" {
				require.EqualError(t, err, c.message)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, got.Name)
		})
	}
}

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

func TestPodReady(t *testing.T) {
	ready := corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionTrue}, {Type: corev1.PodReady, Status: corev1.ConditionTrue}}}
	for name, c := range map[string]struct {
		pod  corev1.Pod
		want bool
	}{
		"ready":       {corev1.Pod{Status: ready}, true},
		"ending":      {corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: ptr(metav1.NewTime(time.Now()))}, Status: ready}, false},
		"not yet":     {corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}}}}, false},
		"not started": {corev1.Pod{}, false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, podReady(&c.pod)) })
	}
}
