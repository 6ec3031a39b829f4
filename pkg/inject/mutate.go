package inject

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/detour-dev/detour/pkg/agentconfig"
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

// HasAgent says whether an agent stands in front of an app port of the pod, be it the sidecar or one that was attached, with the
// certificate of a Secret when the port has one.
func HasAgent(pod *corev1.Pod, port Port) bool {
	return HasSidecar(pod, port) || before(port, attached(pod))
}

// HasSidecar says whether that is the one that the pod was made with.
func HasSidecar(pod *corev1.Pod, port Port) bool {
	var all []agentconfig.Config
	for _, c := range pod.Spec.InitContainers {
		if config, ok := configIn(c.Env); ok && c.Name == AgentContainer {
			all = append(all, config)
		}
	}
	return before(port, all)
}

// OfAnother says whether the pod was made with the sidecar of a traffic-manager that has another authority, such as one that was installed
// before: that agent believes this one nothing.
func OfAnother(pod *corev1.Pod, authority []byte) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		config, ok := configIn(c.Env)
		return ok && c.Name == AgentContainer && config.CA != string(authority)
	})
}

// before says whether one of the agents stands before a port.
func before(port Port, agents []agentconfig.Config) bool {
	return slices.ContainsFunc(agents, func(c agentconfig.Config) bool {
		return slices.ContainsFunc(c.Ports, func(p agentconfig.Port) bool {
			reached := p.Redirect || port.Via != ViaNftables // who took over a name stands before those alone who use it
			return int32(p.App) == port.Port && p.Datagrams == (port.Protocol != "") && reached && (port.Secret == "" || p.Secret == port.Secret)
		})
	})
}

func configIn(env []corev1.EnvVar) (agentconfig.Config, bool) {
	var config agentconfig.Config
	for _, e := range env {
		if e.Name == agentconfig.Env && json.Unmarshal([]byte(e.Value), &config) == nil {
			return config, true
		}
	}
	return config, false
}

// Mutate adds the agent to a pod that does not have it, and puts idle containers in place of those that a laptop replaces. The pod's
// other containers keep everything but port names and probes. A pod that has the agent stays as it is. After an error the pod is as
// it was.
func Mutate(pod *corev1.Pod, plan Plan, opt Options) error {
	mutated := pod.DeepCopy()
	for _, name := range plan.Replaced {
		if err := replace(&mutated.Spec, name, len(plan.Ports) > 0, opt); err != nil {
			return err
		}
	}
	plan.Ports = slices.DeleteFunc(slices.Clone(plan.Ports), func(p Port) bool { return PortObstacle(&pod.ObjectMeta, &pod.Spec, p) != "" })
	if err := addAgent(&mutated.ObjectMeta, &mutated.Spec, plan, opt); err != nil {
		return err
	}
	*pod = *mutated
	return nil
}

func addAgent(meta *metav1.ObjectMeta, spec *corev1.PodSpec, plan Plan, opt Options) error {
	switch {
	case len(plan.Ports) == 0, slices.ContainsFunc(spec.InitContainers, func(c corev1.Container) bool { return c.Name == AgentContainer }):
		return nil
	case spec.HostNetwork:
		return errors.New("the pod uses the host's network: its ports cannot be intercepted")
	case spec.OS != nil && spec.OS.Name == corev1.Windows:
		return errors.New("the pod runs on Windows: only Linux pods can be intercepted")
	}
	config := agentconfig.Config{Manager: opt.Manager, Server: opt.Server, CA: string(opt.CA)}
	var agentPorts []corev1.ContainerPort
	used, redirected := portsOf(meta, spec), map[int32]bool{}
	own, secrets := SecretsOf(spec), []string{}
	rules := false // also where no probe has to be moved
	for _, p := range plan.Ports {
		if used[p.AgentPort] {
			return fmt.Errorf("port %d, which the traffic-agent was to have, is not free in the pod: run `detour intercept` again", p.AgentPort)
		}
		used[p.AgentPort] = true
		if !slices.Contains(own, p.Secret) {
			p.Secret = "" // the pod has no use for it any more, so nor has its agent
		} else if !slices.Contains(secrets, p.Secret) {
			secrets = append(secrets, p.Secret)
		}
		config.Ports = append(config.Ports, agentconfig.Port{App: uint16(p.Port), Agent: uint16(p.AgentPort), Redirect: p.Via == ViaNftables, Secret: p.Secret, Datagrams: p.Protocol != ""})
		port := corev1.ContainerPort{ContainerPort: p.AgentPort, Protocol: cmp.Or(corev1.Protocol(p.Protocol), corev1.ProtocolTCP)}
		if p.Via == ViaTargetPort {
			port.Name = p.Name
		} else if p.Protocol == "" {
			redirected[p.Port] = true
		} else {
			rules = true
		}
		agentPorts = append(agentPorts, port)
	}
	for _, p := range agentPorts {
		if p.Name != "" {
			takeName(spec, p.Name, p.Protocol)
		}
	}
	config.Aliases = aliasProbes(spec, redirected, used)

	raw, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode the agent's configuration: %w", err)
	}
	env := []corev1.EnvVar{{Name: agentconfig.Env, Value: string(raw)}}
	// The agent comes first: it is up before the rules send it anything and before other sidecars need the network, and because
	// the kubelet stops native sidecars in reverse order it is there until all else is gone. It blocks nobody: it is ready once it
	// listens.
	added := []corev1.Container{agentContainer(spec, opt, env, agentPorts)}
	mountCertificates(spec, &added[0], secrets)
	if rules || len(redirected) > 0 {
		added = append(added, initContainer(spec, opt, env))
	}
	spec.InitContainers = append(added, spec.InitContainers...)
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: tokenVolume, VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		// Only the agent mounts it. World-readable within the volume, because the owner is root; with an fsGroup the kubelet makes it
		// that group's, which the agent then has as well.
		DefaultMode: ptr(int32(0o444)),
		Sources:     []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: agentconfig.Audience, ExpirationSeconds: ptr(int64(3600)), Path: "token"}}},
	}}})
	return nil
}

func agentContainer(spec *corev1.PodSpec, opt Options, env []corev1.EnvVar, ports []corev1.ContainerPort) corev1.Container {
	always := corev1.ContainerRestartPolicyAlways
	ready := corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(agentconfig.HealthPort)}}
	return corev1.Container{
		Name: AgentContainer, Image: opt.Image, ImagePullPolicy: opt.PullPolicy, Command: []string{"/traffic-keeper"}, Args: []string{"/traffic-agent", "agent"}, Env: env, Ports: ports,
		RestartPolicy:  &always,
		StartupProbe:   &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, FailureThreshold: 60},
		ReadinessProbe: &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 10, FailureThreshold: 3},
		Resources:      resources(spec),
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: ptr(int64(agentconfig.UserID)), RunAsGroup: ptr(int64(agentconfig.UserID)), RunAsNonRoot: ptr(true), ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}, SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		// The kubelet runs it when the pod begins to end, long before it stops the agent: clients are asked to go elsewhere while all still works.
		Lifecycle:                &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"/traffic-agent", "pod-ends"}}}},
		VolumeMounts:             []corev1.VolumeMount{{Name: tokenVolume, MountPath: agentconfig.TokenDir, ReadOnly: true}},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
}

// initContainer sets the rules. Its root has one capability, and is what it takes: capabilities do not reach other users.
func initContainer(spec *corev1.PodSpec, opt Options, env []corev1.EnvVar) corev1.Container {
	return corev1.Container{
		Name: InitContainer, Image: opt.Image, ImagePullPolicy: opt.PullPolicy, Command: []string{"/traffic-agent"}, Args: []string{"init"}, Env: env,
		Resources: resources(spec),
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: ptr(int64(0)), RunAsGroup: ptr(int64(0)), RunAsNonRoot: ptr(false), ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
}
