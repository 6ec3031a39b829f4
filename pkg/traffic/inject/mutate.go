package inject

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/detour-dev/detour/pkg/traffic/agentconfig"
)

// The containers that are added, and the volume with the agent's token.
const (
	AgentContainer = "traffic-agent"
	InitContainer  = "traffic-agent-init"
	tokenVolume    = "traffic-agent-token"
)

// Options are the same for all pods.
type Options struct {
	Image      string
	PullPolicy corev1.PullPolicy
	Manager    string // host:port of the manager's agent API
	Server     string // the name in the manager's certificate
	CA         []byte // PEM
}

// HasAgent says whether the pod's agent stands in front of an app port.
func HasAgent(pod *corev1.Pod, port int32) bool {
	for _, c := range pod.Spec.InitContainers {
		if c.Name != AgentContainer {
			continue
		}
		for _, e := range c.Env {
			var config agentconfig.Config
			if e.Name == agentconfig.Env && json.Unmarshal([]byte(e.Value), &config) == nil {
				return slices.ContainsFunc(config.Ports, func(p agentconfig.Port) bool { return int32(p.App) == port })
			}
		}
	}
	return false
}

// Mutate adds the agent to a pod that does not have it. The pod's own containers keep everything but port names and probes.
func Mutate(pod *corev1.Pod, plan Plan, opt Options) error {
	if slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == AgentContainer }) || len(plan.Ports) == 0 {
		return nil
	}
	if pod.Spec.HostNetwork {
		return fmt.Errorf("the pod uses the host's network")
	}
	config := agentconfig.Config{Manager: opt.Manager, Server: opt.Server, CA: string(opt.CA)}
	var agentPorts []corev1.ContainerPort
	redirected := map[int32]bool{}
	for _, p := range plan.Ports {
		config.Ports = append(config.Ports, agentconfig.Port{App: uint16(p.Port), Agent: uint16(p.AgentPort), Redirect: p.Via == ViaNftables})
		port := corev1.ContainerPort{ContainerPort: p.AgentPort, Protocol: corev1.ProtocolTCP}
		if p.Via == ViaTargetPort {
			port.Name = p.Name
			takeName(pod, p)
		} else {
			redirected[p.Port] = true
		}
		agentPorts = append(agentPorts, port)
	}
	config.Aliases = aliasProbes(pod, redirected)

	raw, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode the agent's configuration: %w", err)
	}
	env := []corev1.EnvVar{{Name: agentconfig.Env, Value: string(raw)}}
	always := corev1.ContainerRestartPolicyAlways
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(agentconfig.HealthPort)}}
	agent := corev1.Container{
		Name: AgentContainer, Image: opt.Image, ImagePullPolicy: opt.PullPolicy, Command: []string{"/traffic-agent"}, Args: []string{"agent"}, Env: env, Ports: agentPorts,
		RestartPolicy: &always,
		StartupProbe:  &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, FailureThreshold: 60},
		Resources:     corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("10m"), corev1.ResourceMemory: resource.MustParse("20Mi")}},
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: ptr(int64(agentconfig.UserID)), RunAsGroup: ptr(int64(agentconfig.UserID)), RunAsNonRoot: ptr(true), ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		VolumeMounts: []corev1.VolumeMount{{Name: tokenVolume, MountPath: agentconfig.TokenDir, ReadOnly: true}},
	}
	added := []corev1.Container{agent}
	if len(redirected) > 0 {
		added = append(added, corev1.Container{
			Name: InitContainer, Image: opt.Image, ImagePullPolicy: opt.PullPolicy, Command: []string{"/traffic-agent"}, Args: []string{"init"}, Env: env,
			SecurityContext: &corev1.SecurityContext{
				RunAsUser: ptr(int64(0)), RunAsNonRoot: ptr(false), ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
				Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
		})
	}
	// The agent starts before the rules do, so that nothing is ever sent to a port where nobody listens.
	pod.Spec.InitContainers = append(added, pod.Spec.InitContainers...)
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: tokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		// Readable by the agent's own user; the kubelet gives it to fsGroup as well where there is one.
		DefaultMode: ptr(int32(0o444)),
		Sources:     []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: agentconfig.Audience, ExpirationSeconds: ptr(int64(3600)), Path: "token"}}},
	}}})
	return nil
}

func ptr[T any](v T) *T { return &v }

// takeName gives the app's port another name, so that the service finds the agent's, and lets the app's own probes go on
// to reach the app by number.
func takeName(pod *corev1.Pod, p Port) {
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		for j := range c.Ports {
			if c.Ports[j].Name == p.Name {
				c.Ports[j].Name = fmt.Sprintf("detour-%d", p.Port)
			}
		}
		eachProbePort(c, func(port *intstr.IntOrString) {
			if port.Type == intstr.String && port.StrVal == p.Name {
				*port = intstr.FromInt32(p.Port)
			}
		})
	}
}

// aliasProbes sends the probes of redirected ports to aliases, which lead to the app in any case.
func aliasProbes(pod *corev1.Pod, redirected map[int32]bool) []agentconfig.Alias {
	aliases := map[int32]int32{}
	var list []agentconfig.Alias
	next := int32(firstAlias)
	aliasOf := func(number int32) int32 {
		if aliases[number] == 0 {
			aliases[number] = next
			list = append(list, agentconfig.Alias{Alias: uint16(next), App: uint16(number)})
			next++
		}
		return aliases[number]
	}
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		eachProbePort(c, func(port *intstr.IntOrString) {
			number := port.IntVal
			if port.Type == intstr.String {
				for _, cp := range c.Ports {
					if cp.Name == port.StrVal {
						number = cp.ContainerPort
					}
				}
			}
			if redirected[number] {
				*port = intstr.FromInt32(aliasOf(number))
			}
		})
		for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
			if probe != nil && probe.GRPC != nil && redirected[probe.GRPC.Port] {
				probe.GRPC.Port = aliasOf(probe.GRPC.Port)
			}
		}
	}
	return list
}

// eachProbePort visits the ports of HTTP and TCP probes and lifecycle hooks.
func eachProbePort(c *corev1.Container, visit func(*intstr.IntOrString)) {
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if probe == nil {
			continue
		}
		if probe.HTTPGet != nil {
			visit(&probe.HTTPGet.Port)
		}
		if probe.TCPSocket != nil {
			visit(&probe.TCPSocket.Port)
		}
	}
	if c.Lifecycle == nil {
		return
	}
	for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if hook != nil && hook.HTTPGet != nil {
			visit(&hook.HTTPGet.Port)
		}
	}
}
