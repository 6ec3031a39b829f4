package inject

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func annotated(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		if p.Annotations == nil {
			p.Annotations = map[string]string{}
		}
		p.Annotations[key] = value
	}
}

func meshed(container string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: container, Image: "example.org/proxy:v1"})
	}
}

func natively(container string) func(*corev1.Pod) {
	always := corev1.ContainerRestartPolicyAlways
	return func(p *corev1.Pod) {
		p.Spec.InitContainers = append(p.Spec.InitContainers, corev1.Container{
			Name:          container,
			Image:         "example.org/proxy:v1",
			RestartPolicy: &always,
		})
	}
}

func TestPortObstacle(t *testing.T) {
	at := func(port int32) Port { p := numeric(); p.Port = port; return p }
	udp := numeric()
	udp.Protocol = "UDP"
	const (
		listed  = "the pods' annotation detour.dev/skip-inbound-ports lists it"
		proxys  = "belongs to the pods' "
		through = "passes through the pods' "
	)
	for name, c := range map[string]struct {
		pod  *corev1.Pod
		port Port
		want string
	}{
		"ordinary":       {pod(), numeric(), ""},
		"listed":         {pod(annotated(SkipAnnotation, "15001, 8080")), symbolic(), listed},
		"in a range":     {pod(annotated(SkipAnnotation, "8000-8080")), numeric(), listed},
		"beside a range": {pod(annotated(SkipAnnotation, "8000-8079,8081")), numeric(), ""},
		"a list that is none": {
			pod:  pod(annotated(SkipAnnotation, "8443,http")),
			port: symbolic(),
			want: `in the pods' annotation detour.dev/skip-inbound-ports "http" is neither a port nor a range of ports`,
		},
		"Istio, redirected":         {pod(meshed("istio-proxy")), numeric(), through + "Istio proxy"},
		"Istio as a native sidecar": {pod(natively("istio-proxy")), numeric(), through + "Istio proxy"},
		"Istio, by name":            {pod(meshed("istio-proxy")), symbolic(), ""},
		"Istio, datagrams":          {pod(meshed("istio-proxy")), udp, ""},
		"Istio, out of the mesh": {
			pod:  pod(meshed("istio-proxy"), annotated("traffic.sidecar.istio.io/excludeInboundPorts", "8080")),
			port: numeric(),
		},
		"Istio, another out of it": {
			pod:  pod(meshed("istio-proxy"), annotated("traffic.sidecar.istio.io/excludeInboundPorts", "9090")),
			port: numeric(),
			want: through,
		},
		"Istio, an exclusion of others": {
			pod:  pod(meshed("istio-proxy"), annotated("config.linkerd.io/skip-inbound-ports", "8080")),
			port: numeric(),
			want: through,
		},
		"Istio's own":            {pod(meshed("istio-proxy")), at(15021), proxys + "Istio proxy"},
		"Istio's own without it": {pod(), at(15021), ""},
		"Linkerd, redirected":    {pod(natively("linkerd-proxy")), numeric(), through + "Linkerd proxy"},
		"Linkerd, out of the mesh": {
			pod:  pod(meshed("linkerd-proxy"), annotated("config.linkerd.io/skip-inbound-ports", "25,8000-9000")),
			port: numeric(),
		},
		"Linkerd's own": {pod(meshed("linkerd-proxy")), at(4191), proxys + "Linkerd proxy"},
	} {
		t.Run(name, func(t *testing.T) {
			got := PortObstacle(&c.pod.ObjectMeta, &c.pod.Spec, c.port)
			if c.want == "" {
				assert.Empty(t, got)
			}
			assert.Contains(t, got, c.want)
		})
	}
}

// A plan refuses what is to be left alone, and the agent's own ports are none of it.
func TestPlanLeavesAlone(t *testing.T) {
	svc := &corev1.Service{Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "catalog"}}}
	svc.Name = "catalog"
	template := &corev1.PodTemplateSpec{Spec: pod().Spec}
	template.Annotations = map[string]string{SkipAnnotation: "9000,9900-9904"}
	_, err := PlanPort(svc, corev1.ServicePort{Port: 81, TargetPort: intstr.FromInt32(9000)}, template)
	assert.EqualError(t, err,
		"port 81 of service catalog goes to container port 9000, which must not be intercepted: the pods' annotation detour.dev/skip-inbound-ports lists it")
	port, err := PlanPort(svc, corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("http")}, template)
	require.NoError(t, err)
	assert.Equal(t, int32(9905), Plan{}.With(port, template).Ports[0].AgentPort)
}

// What came to be left alone after it was planned is: the pod has no agent before it.
func TestMutateLeavesAlone(t *testing.T) {
	plan := Plan{Ports: []Port{symbolic(), {Container: "app", Port: 8081, Via: ViaNftables, AgentPort: 9901}}}
	for name, c := range map[string]struct {
		change func(*corev1.Pod)
		want   [2]bool
	}{
		"nothing":   {func(*corev1.Pod) {}, [2]bool{true, true}},
		"one":       {annotated(SkipAnnotation, "8080"), [2]bool{false, true}},
		"all":       {annotated(SkipAnnotation, "8080-8081"), [2]bool{}},
		"nobody's":  {annotated(SkipAnnotation, "everything"), [2]bool{}},
		"in a mesh": {meshed("istio-proxy"), [2]bool{true, false}},
		"out of it": {
			change: func(p *corev1.Pod) { meshed("istio-proxy")(p); annotated(meshes[0].annotation, "8081")(p) },
			want:   [2]bool{true, true},
		},
		"alias' port": {annotated(SkipAnnotation, "9950"), [2]bool{true, true}},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod(c.change)
			require.NoError(t, Mutate(p, plan, options()))
			for i, port := range plan.Ports {
				assert.Equal(t, c.want[i], HasAgent(p, port), "port %d", port.Port)
			}
			if c.want == [2]bool{} {
				assert.Empty(t, p.Spec.InitContainers)
			}
		})
	}
}
