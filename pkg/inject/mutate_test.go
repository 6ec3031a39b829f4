package inject

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

var update = flag.Bool("update", false, "write the golden files anew")

func options() Options {
	return Options{
		Image: "example.org/traffic:v1", PullPolicy: corev1.PullIfNotPresent,
		Manager: "traffic-manager.detour-system.svc:8082",
		Server:  "traffic-manager.detour-system.svc",
		CA:      []byte("PEM"),
	}
}

func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "catalog-"},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "app", Image: "example.org/catalog:v1",
			Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolTCP}},
		}}},
	}
	for _, c := range change {
		c(p)
	}
	return p
}

func httpGet(port intstr.IntOrString) corev1.ProbeHandler {
	return corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: port}}
}

func symbolic() Port {
	return Port{Container: "app", Port: 8080, Name: "http", Via: ViaTargetPort, AgentPort: 9900}
}

func numeric() Port {
	return Port{Container: "app", Port: 8080, Via: ViaNftables, AgentPort: 9900}
}

func named(p *corev1.Pod) {
	c := &p.Spec.Containers[0]
	c.LivenessProbe = &corev1.Probe{ProbeHandler: httpGet(intstr.FromString("http"))}
	c.ReadinessProbe = &corev1.Probe{ProbeHandler: httpGet(intstr.FromInt32(8080))}
	c.StartupProbe = &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromString("http")}},
	}
	c.Lifecycle = &corev1.Lifecycle{
		PreStop: &corev1.LifecycleHandler{
			HTTPGet: &corev1.HTTPGetAction{Path: "/bye", Port: intstr.FromString("http")},
		},
	}
}

func TestMutateGolden(t *testing.T) {
	cases := []struct {
		name string
		pod  *corev1.Pod
		plan Plan
	}{
		{"symbolic", pod(), Plan{Ports: []Port{symbolic()}}},
		{"symbolic-probes", pod(named), Plan{Ports: []Port{symbolic()}}},
		{"numeric", pod(), Plan{Ports: []Port{numeric()}}},
		{"numeric-probes", pod(named), Plan{Ports: []Port{numeric()}}},
		{"grpc-probe", pod(func(p *corev1.Pod) {
			p.Spec.Containers[0].LivenessProbe = &corev1.Probe{
				ProbeHandler: corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 8080}},
			}
		}), Plan{Ports: []Port{numeric()}}},
		{"one-of-two-ports", pod(func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.Ports = append(c.Ports, corev1.ContainerPort{Name: "admin", ContainerPort: 8081},
				corev1.ContainerPort{Name: "http", ContainerPort: 8080, Protocol: corev1.ProtocolUDP})
			c.LivenessProbe = &corev1.Probe{ProbeHandler: httpGet(intstr.FromString("admin"))}
		}), Plan{Ports: []Port{symbolic()}}},
		{"both-ways", pod(named, func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: 8081})
		}), Plan{Ports: []Port{symbolic(), {Container: "app", Port: 8081, Via: ViaNftables, AgentPort: 9901}}}},
		{"security-and-other-init-containers", pod(func(p *corev1.Pod) {
			p.Spec.SecurityContext = &corev1.PodSecurityContext{
				RunAsUser:    ptr(int64(1000)),
				RunAsNonRoot: ptr(true),
				FSGroup:      ptr(int64(2000)),
			}
			p.Spec.AutomountServiceAccountToken = ptr(false)
			p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr(true)}
			p.Spec.InitContainers = []corev1.Container{{Name: "migrate", Image: "example.org/catalog:v1"}}
			p.Spec.Volumes = []corev1.Volume{{Name: "data"}}
		}), Plan{Ports: []Port{numeric()}}},
		{"udp", pod(named, func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.Ports = append(c.Ports,
				corev1.ContainerPort{Name: "dns", ContainerPort: 5353, Protocol: corev1.ProtocolUDP},
				corev1.ContainerPort{ContainerPort: 8080, Protocol: corev1.ProtocolUDP})
		}), Plan{Ports: []Port{
			{Container: "app", Port: 5353, Name: "dns", Via: ViaTargetPort, AgentPort: 9900, Protocol: "UDP"},
			{Container: "app", Port: 8080, Via: ViaNftables, AgentPort: 9901, Protocol: "UDP"},
		}}},
		{"certificate", pod(func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{
				Name:         "tls",
				VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "web-tls"}},
			}}
		}), Plan{Ports: []Port{
			{Container: "app", Port: 8080, Name: "http", Via: ViaTargetPort, AgentPort: 9900, Secret: "web-tls"},
			{Container: "app", Port: 8443, Via: ViaNftables, AgentPort: 9901, Secret: "web-tls"},
		}}},
		{"native-sidecar", pod(func(p *corev1.Pod) {
			p.Spec.Containers[0].Ports = nil
			p.Spec.InitContainers = []corev1.Container{{
				Name:           "proxy",
				RestartPolicy:  ptr(corev1.ContainerRestartPolicyAlways),
				Ports:          []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				ReadinessProbe: &corev1.Probe{ProbeHandler: httpGet(intstr.FromString("http"))},
			}}
		}), Plan{Ports: []Port{symbolic()}}},
		{"replaced", pod(named, func(p *corev1.Pod) {
			c := &p.Spec.Containers[0]
			c.Command, c.Args, c.WorkingDir = []string{"/catalog"}, []string{"--listen"}, "/srv"
			c.Env, c.VolumeMounts = []corev1.EnvVar{{Name: "COLOUR", Value: "blue"}}, []corev1.VolumeMount{{
				Name:      "data",
				MountPath: "/data",
			}}
			c.SecurityContext = &corev1.SecurityContext{RunAsNonRoot: ptr(true)}
			p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
				Name:          "log",
				Image:         "example.org/log:v1",
				LivenessProbe: &corev1.Probe{ProbeHandler: httpGet(intstr.FromInt32(8080))},
			})
			p.Spec.Volumes = []corev1.Volume{{Name: "data"}}
		}), Plan{Ports: []Port{numeric()}, Replaced: []string{"app"}}},
		{"replaced-without-ports", pod(func(p *corev1.Pod) {
			p.Spec.HostNetwork = true
			p.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1000))}
		}), Plan{Replaced: []string{"app"}}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			require.NoError(t, Mutate(c.pod, c.plan, options()))
			got, err := json.MarshalIndent(c.pod.Spec, "", "  ")
			require.NoError(t, err)
			golden := filepath.Join("testdata", c.name+".json")
			if *update {
				require.NoError(t, os.MkdirAll("testdata", 0o755))
				require.NoError(t, os.WriteFile(golden, append(got, '\n'), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			assert.JSONEq(t, string(want), string(got))

			for _, p := range c.plan.Ports {
				assert.True(t, HasAgent(c.pod, p))
			}
			assert.False(t, HasAgent(c.pod, Port{Port: 1}))
			assert.Equal(t, c.plan.Replaces("app"), IsReplaced(c.pod, "app"))

			again := c.pod.DeepCopy()
			require.NoError(t, Mutate(again, c.plan, options()))
			assert.Equal(t, c.pod, again, "a second mutation changes nothing")
		})
	}
}

func TestMutateSameNameInTwoContainers(t *testing.T) {
	p := pod(func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
			Name: "other", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8090}},
			LivenessProbe: &corev1.Probe{ProbeHandler: httpGet(intstr.FromString("http"))},
		})
	})
	require.NoError(t, Mutate(p, Plan{Ports: []Port{symbolic()}}, options()))
	assert.Equal(t, "detour-8090", p.Spec.Containers[1].Ports[0].Name, "the name must lead to the agent alone")
	assert.Equal(t, intstr.FromInt32(8090), p.Spec.Containers[1].LivenessProbe.HTTPGet.Port,
		"a probe stays with its own container")
}

func TestMutateLeavesProbesOfOtherHosts(t *testing.T) {
	p := pod(func(p *corev1.Pod) {
		handler := httpGet(intstr.FromInt32(8080))
		handler.HTTPGet.Host = "192.0.2.1"
		p.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: handler}
	})
	require.NoError(t, Mutate(p, Plan{Ports: []Port{numeric()}}, options()))
	assert.Equal(t, intstr.FromInt32(8080), p.Spec.Containers[0].LivenessProbe.HTTPGet.Port)
}

func TestMutateRefuses(t *testing.T) {
	cases := map[string]struct {
		change func(*corev1.Pod)
		says   string
	}{
		"host network":    {func(p *corev1.Pod) { p.Spec.HostNetwork = true }, "host's network"},
		"windows":         {func(p *corev1.Pod) { p.Spec.OS = &corev1.PodOS{Name: corev1.Windows} }, "Windows"},
		"agent port used": {func(p *corev1.Pod) { p.Spec.Containers[0].Ports[0].ContainerPort = 9900 }, "9900"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			p := pod(c.change)
			before := p.DeepCopy()
			require.ErrorContains(t, Mutate(p, Plan{Ports: []Port{symbolic()}}, options()), c.says)
			assert.Equal(t, before, p)
		})
	}
	p := pod()
	require.NoError(t, Mutate(p, Plan{}, options()))
	assert.Equal(t, pod(), p, "no ports, no agent")
}

func TestMutateKeepsQualityOfService(t *testing.T) {
	list := func(cpu, memory string) corev1.ResourceList {
		return corev1.ResourceList{
			corev1.ResourceCPU:    resource.MustParse(cpu),
			corev1.ResourceMemory: resource.MustParse(memory),
		}
	}
	agent := func(r corev1.ResourceRequirements) corev1.ResourceRequirements {
		p := pod(func(p *corev1.Pod) { p.Spec.Containers[0].Resources = r })
		require.NoError(t, Mutate(p, Plan{Ports: []Port{symbolic()}}, options()))
		return p.Spec.InitContainers[0].Resources
	}
	guaranteed := agent(corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("1", "1Gi")})
	assert.Equal(t, guaranteed.Requests, guaranteed.Limits, "Guaranteed stays Guaranteed")
	burstable := agent(corev1.ResourceRequirements{Requests: list("1", "1Gi"), Limits: list("2", "1Gi")})
	assert.Len(t, burstable.Limits, 2, "a quota may ask for limits")
	assert.Empty(t, agent(corev1.ResourceRequirements{Requests: list("1", "1Gi")}).Limits,
		"no limit where the app has none")
}

// An agent believes the traffic-manager alone that it was made by.
func TestOfAnother(t *testing.T) {
	p := pod()
	require.False(t, OfAnother(p, options().CA), "without an agent")
	require.NoError(t, Mutate(p, Plan{Ports: []Port{numeric()}}, options()))
	require.False(t, OfAnother(p, options().CA))
	require.True(t, OfAnother(p, []byte("ANOTHER")))
}
