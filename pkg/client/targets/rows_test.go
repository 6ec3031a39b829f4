package targets

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func service(name string, selector map[string]string, ports ...corev1.ServicePort) corev1.Service {
	return corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.ServiceSpec{ClusterIP: "10.96.0.5", Selector: selector, Ports: ports},
	}
}

func template(labels map[string]string) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "app", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
		}}},
	}
}

func deployment(name string, labels map[string]string) appsv1.Deployment {
	return appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: appsv1.DeploymentSpec{Template: template(labels)},
	}
}

func deployments(all ...appsv1.Deployment) []*workloads.Workload {
	return workloads.FromList(&appsv1.DeploymentList{Items: all})
}

func rolloutOf(spec argo.Spec) *argo.Rollout {
	u := argo.New()
	u.SetName("catalog")
	return &argo.Rollout{Unstructured: u, Spec: spec}
}

// The list gives the same answer for a service as the traffic-manager.
func TestTargets(t *testing.T) {
	catalog := map[string]string{"app": "catalog"}
	http := corev1.ServicePort{
		Name: "http", Port: 80, TargetPort: intstr.FromString("http"), Protocol: corev1.ProtocolTCP,
	}
	number := corev1.ServicePort{Port: 8080, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}
	sctp := corev1.ServicePort{
		Name: "signal", Port: 99, TargetPort: intstr.FromInt32(99), Protocol: corev1.ProtocolSCTP,
	}
	dns := corev1.ServicePort{Name: "dns", Port: 53, TargetPort: intstr.FromInt32(53), Protocol: corev1.ProtocolUDP}
	labels := map[string]string{"app": "catalog", "version": "1"}
	one := deployments(deployment("catalog", labels), deployment("other", nil))
	two := deployments(deployment("catalog", catalog), deployment("canary", catalog))
	eve := []*daemonv1.TargetIntercept{{
		Name: "catalog-1", Laptop: "eve@thinkpad", Phase: "Active", Mode: "intercept", Requests: "all requests",
		Redirect: "attach",
	}}
	held := map[portKey][]*daemonv1.TargetIntercept{
		{workload: "deployment/catalog", port: 8080}: eve,
		{workload: "deployment/other", port: 8080}:   {{Laptop: "mallory@mac"}},
	}
	argos := workloads.AddRollouts(nil, []*argo.Rollout{rolloutOf(argo.Spec{Template: template(catalog)})})
	unread := workloads.AddRollouts(nil, []*argo.Rollout{rolloutOf(argo.Spec{
		WorkloadRef: &argo.WorkloadRef{Kind: "ReplicaSet", Name: "x"},
		Selector:    &metav1.LabelSelector{MatchLabels: catalog},
	})})
	none := int32(0)
	only := deployment("catalog", catalog)
	only.Spec.Replicas = &none
	referring := workloads.AddRollouts(deployments(only), []*argo.Rollout{rolloutOf(argo.Spec{
		WorkloadRef: &argo.WorkloadRef{Kind: "Deployment", Name: "catalog"},
	})})
	stable := map[string]string{"app": "catalog", "rollouts-pod-template-hash": "76d9f8c7"}
	paused := deployment("catalog", catalog)
	paused.Spec.Paused = true
	const (
		noService = "no service selects it"
		isPaused  = "deployment/catalog is paused: resume it, so that pods with the traffic-agent can be rolled out"
		unknown   = "rollout/catalog takes its pod template from ReplicaSet x, which detour cannot read: " +
			"let it refer to a Deployment, or write the template in the Rollout itself"
		meshed = "port 8080 of deployment/catalog passes through the pods' Istio proxy and " +
			"cannot be redirected to the agent: name the container port and use that name " +
			"as the service's targetPort, or exclude the port from the mesh " +
			"with the pods' annotation traffic.sidecar.istio.io/excludeInboundPorts"
	)
	other := &daemonv1.Target{Workload: "deployment/other", WhyNot: noService, Only: "--mode replace"}
	catalogs := []*daemonv1.Target{{Workload: "deployment/catalog", WhyNot: noService, Only: "--mode replace"}, other}
	istio := []corev1.Pod{{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "catalog", "version": "1"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}, {Name: "istio-proxy"}}},
	}}

	web := []corev1.Service{service("catalog", catalog, http)}
	for name, c := range map[string]struct {
		services  []corev1.Service
		workloads []*workloads.Workload
		pods      []corev1.Pod
		want      []*daemonv1.Target
	}{
		"an empty namespace":          {},
		"workloads without a service": {workloads: one, want: catalogs},
		"each port of a service": {
			services: []corev1.Service{service("catalog", catalog, http, number)}, workloads: one,
			want: []*daemonv1.Target{
				{
					Service: "catalog", Port: "80/http", Workload: "deployment/catalog", Redirect: "attach",
					Intercepts: eve,
				},
				{Service: "catalog", Port: "8080", Workload: "deployment/catalog", Redirect: "attach", Intercepts: eve},
				other,
			},
		},
		"a service that selects no pods": {
			services: []corev1.Service{service("cart", map[string]string{"app": "cart"}, http)}, workloads: one,
			want: []*daemonv1.Target{
				{Service: "cart", Port: "80/http", WhyNot: "no workload matches its selector"},
				catalogs[0],
				catalogs[1],
			},
		},
		"a service without a selector": {
			services: []corev1.Service{service("outside", nil, http)}, workloads: one,
			want: []*daemonv1.Target{
				{Service: "outside", Port: "80/http", WhyNot: "no workload matches its selector"},
				catalogs[0],
				catalogs[1],
			},
		},
		"a service with two workloads": {
			services: web, workloads: two,
			want: []*daemonv1.Target{{
				Service: "catalog", Port: "80/http", Workload: "deployment/canary, deployment/catalog",
				WhyNot: "several workloads match its selector",
			}},
		},
		"a Rollout behind its stable service": {
			services: []corev1.Service{service("catalog", stable, http)}, workloads: argos,
			want: []*daemonv1.Target{{
				Service: "catalog", Port: "80/http", Workload: "rollout/catalog", Redirect: "targetPort",
			}},
		},
		"a Rollout's stable service without the Rollout": {
			services: []corev1.Service{service("catalog", stable, http)}, workloads: two,
			want: []*daemonv1.Target{
				{Service: "catalog", Port: "80/http", WhyNot: "no workload matches its selector"},
				{Workload: "deployment/canary", WhyNot: noService, Only: "--mode replace"},
				catalogs[0],
			},
		},
		"a Deployment that is only a Rollout's template": {
			services: web, workloads: referring,
			want: []*daemonv1.Target{{
				Service: "catalog", Port: "80/http", Workload: "rollout/catalog", Redirect: "targetPort",
			}},
		},
		"a service without ports": {
			services: []corev1.Service{service("headless", catalog)}, workloads: one, want: catalogs,
		},
		"a Rollout whose template is unknown": {
			services: web, workloads: unread,
			want: []*daemonv1.Target{{
				Service: "catalog", Port: "80/http", Workload: "rollout/catalog", WhyNot: unknown,
			}},
		},
		"a paused Deployment": {
			services: []corev1.Service{service("catalog", catalog, number, dns)}, workloads: deployments(paused),
			want: []*daemonv1.Target{
				{
					Service: "catalog", Port: "8080", Workload: "deployment/catalog", Redirect: "attach",
					WhyNot: isPaused,
					Only:   "--attach", Intercepts: eve,
				},
				{Service: "catalog", Port: "53/dns", Workload: "deployment/catalog", WhyNot: isPaused},
			},
		},
		"a paused Deployment without a service": {
			workloads: deployments(paused),
			want:      []*daemonv1.Target{{Workload: "deployment/catalog", WhyNot: isPaused}},
		},
		"a mesh's proxy that only the pods have": {
			services: []corev1.Service{service("catalog", catalog, number, http)}, workloads: one, pods: istio,
			want: []*daemonv1.Target{
				{Service: "catalog", Port: "8080", Workload: "deployment/catalog", WhyNot: meshed},
				{
					Service: "catalog", Port: "80/http", Workload: "deployment/catalog", Redirect: "attach",
					Intercepts: eve,
				},
				other,
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, targetsOf(c.services, c.workloads, c.pods, held))
		})
	}
	t.Run("UDP", func(t *testing.T) {
		key := portKey{workload: "deployment/catalog", port: 53, protocol: "UDP"}
		mine := byPort{key: eve}
		rows := targetsOf([]corev1.Service{service("catalog", catalog, dns, sctp)}, one, nil, mine)
		require.Len(t, rows, 3)
		assert.Equal(t, eve, rows[0].Intercepts)
		assert.NotEmpty(t, rows[0].Redirect)
		assert.Contains(t, rows[1].WhyNot, "only TCP and UDP")
	})
}
