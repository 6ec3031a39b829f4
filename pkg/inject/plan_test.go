package inject

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestPlanPort(t *testing.T) {
	service := func(change func(*corev1.ServiceSpec)) *corev1.Service {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: "catalog"},
			Spec:       corev1.ServiceSpec{ClusterIP: "10.0.0.1", Selector: map[string]string{"app": "catalog"}},
		}
		if change != nil {
			change(&s.Spec)
		}
		return s
	}
	headless := func(s *corev1.ServiceSpec) { s.ClusterIP = corev1.ClusterIPNone }
	port := func(target intstr.IntOrString, protocol corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Port: 80, TargetPort: target, Protocol: protocol}
	}
	http, number := intstr.FromString("http"), intstr.FromInt32(8080)
	cases := map[string]struct {
		service func(*corev1.ServiceSpec)
		port    corev1.ServicePort
		pod     func(*corev1.Pod)
		want    Port
		err     string
	}{
		"symbolic": {
			port: port(http, corev1.ProtocolTCP),
			want: Port{Container: "app", Port: 8080, Name: "http", Via: ViaTargetPort},
		},
		"no protocol is TCP": {
			port: port(http, ""),
			want: Port{Container: "app", Port: 8080, Name: "http", Via: ViaTargetPort},
		},
		"numeric": {port: port(number, ""), want: Port{Container: "app", Port: 8080, Via: ViaNftables}},
		"no target port": {
			port: port(intstr.IntOrString{}, ""),
			want: Port{Container: "app", Port: 80, Via: ViaNftables},
		},
		"undeclared": {
			port: port(intstr.FromInt32(9000), ""),
			want: Port{Container: "app", Port: 9000, Via: ViaNftables},
		},
		"headless, symbolic": {
			service: headless,
			port:    port(http, ""),
			want:    Port{Container: "app", Port: 8080, Via: ViaNftables},
		},
		"headless, numeric": {
			service: headless,
			port:    port(number, ""),
			want:    Port{Container: "app", Port: 8080, Via: ViaNftables},
		},
		"in the second": {
			port: port(intstr.FromInt32(7000), ""),
			pod:  withSecond,
			want: Port{Container: "second", Port: 7000, Via: ViaNftables},
		},
		"unknown name": {port: port(intstr.FromString("web"), ""), err: `container port "web"`},
		"name of a UDP port": {
			port: port(http, ""),
			pod:  func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].Protocol = corev1.ProtocolUDP },
			err:  `container port "http"`,
		},
		"UDP": {
			port: port(number, corev1.ProtocolUDP),
			want: Port{Container: "app", Port: 8080, Via: ViaNftables, Protocol: "UDP"},
		},
		"name of a TCP port": {port: port(http, corev1.ProtocolUDP), err: `container port "http"`},
		"UDP, symbolic": {
			port: port(http, corev1.ProtocolUDP),
			pod:  func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].Protocol = corev1.ProtocolUDP },
			want: Port{
				Container: "app", Port: 8080, Name: "http", Via: ViaTargetPort, Protocol: "UDP",
			},
		},
		"UDP on the agent's own": {
			port: port(intstr.FromInt32(9899), corev1.ProtocolUDP),
			want: Port{Container: "app", Port: 9899, Via: ViaNftables, Protocol: "UDP"},
		},
		"SCTP": {port: port(http, corev1.ProtocolSCTP), err: "only TCP and UDP ports"},
		"host network": {
			port: port(http, ""),
			pod:  func(p *corev1.Pod) { p.Spec.HostNetwork = true },
			err:  "host's network",
		},
		"windows": {
			port: port(http, ""),
			pod:  func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} },
			err:  "Windows",
		},
		"external name": {
			service: func(s *corev1.ServiceSpec) { s.Type = corev1.ServiceTypeExternalName },
			port:    port(http, ""),
			err:     "ExternalName",
		},
		"no selector": {
			service: func(s *corev1.ServiceSpec) { s.Selector = nil },
			port:    port(http, ""),
			err:     "no selector",
		},
		"the agent's own port": {port: port(intstr.FromInt32(9899), ""), err: "needs for itself"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := pod()
			if c.pod != nil {
				c.pod(p)
			}
			got, err := PlanPort(service(c.service), c.port, &corev1.PodTemplateSpec{Spec: p.Spec})
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, c.want, got)
		})
	}
}

func withSecond(p *corev1.Pod) {
	p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
		Name:  "second",
		Ports: []corev1.ContainerPort{{ContainerPort: 7000}},
	})
}

func TestPlanWith(t *testing.T) {
	template := &corev1.PodTemplateSpec{Spec: pod(func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = append(p.Spec.Containers[0].Ports, corev1.ContainerPort{ContainerPort: 9901})
	}).Spec}
	named := Port{Container: "app", Port: 8080, Name: "http", Via: ViaTargetPort}
	redirected := Port{Container: "app", Port: 8080, Via: ViaNftables}
	other := Port{Container: "app", Port: 8081, Via: ViaNftables}

	p := Plan{Restart: "now"}.With(named, template)
	assert.Equal(t, int32(9900), p.Ports[0].AgentPort)
	assert.Equal(t, "now", p.Restart)
	assert.True(t, p.Covers(named))
	assert.False(t, p.Covers(redirected), "the name does not catch those who dial the number")
	assert.Equal(t, p, p.With(named, template), "twice is once")

	two := p.With(other, template)
	assert.Equal(t, int32(9902), two.Ports[1].AgentPort, "9901 is the app's")

	p = p.With(redirected, template)
	require.Len(t, p.Ports, 1, "a redirect catches the name's traffic as well")
	assert.True(t, p.Covers(named))
	assert.Equal(t, p, p.With(named, template))
}

func TestPlanText(t *testing.T) {
	p := Plan{Ports: []Port{symbolic()}, Restart: "2026-01-02T03:04:05Z"}
	got, err := ParsePlan(p.String())
	require.NoError(t, err)
	assert.Equal(t, p, got)
	assert.JSONEq(t, `{
		"ports": [{"container": "app", "port": 8080, "name": "http", "via": "targetPort", "agentPort": 9900}],
		"restart": "2026-01-02T03:04:05Z"
	}`, p.String())

	empty, err := ParsePlan("")
	require.NoError(t, err)
	assert.Empty(t, empty.Ports)
	for _, bad := range []string{
		"{",
		`{"ports":[{"port":0,"agentPort":1,"via":"nftables"}]}`,
		`{"ports":[{"port":70000,"agentPort":1,"via":"nftables"}]}`,
		`{"ports":[{"port":1,"agentPort":9900,"via":"magic"}]}`,
		`{"ports":[{"port":1,"agentPort":9900,"via":"targetPort"}]}`,
		`{"ports":[{"port":1,"agentPort":9900,"via":"nftables"},{"port":2,"agentPort":9900,"via":"nftables"}]}`,
	} {
		_, err := ParsePlan(bad)
		assert.Error(t, err, bad)
	}
}
