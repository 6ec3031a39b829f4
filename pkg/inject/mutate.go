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

// The containers and the volume that detour adds to a pod.
const (
	AgentContainer = "traffic-agent"
	InitContainer  = "traffic-agent-init"
	tokenVolume    = "traffic-agent-token"
)

// Options are the same for all pods of an installation.
type Options struct {
	Image      string
	PullPolicy corev1.PullPolicy
	Manager    string // host:port of the traffic-manager's agent API
	Server     string // the name in the traffic-manager's certificate
	CA         []byte // the traffic-manager's certificate authority, PEM
}

// HasAgent reports whether an agent, injected or attached, stands in front of an app port of the
// pod. When the port has a Secret, the agent must have the same Secret.
func HasAgent(pod *corev1.Pod, port Port) bool {
	return HasSidecar(pod, port) || servesPort(attachedConfigs(pod), port)
}

// HasSidecar reports whether the injected agent of the pod stands in front of an app port.
func HasSidecar(pod *corev1.Pod, port Port) bool {
	var all []agentconfig.Config
	for _, c := range pod.Spec.InitContainers {
		if config, ok := configIn(c.Env); ok && c.Name == AgentContainer {
			all = append(all, config)
		}
	}
	return servesPort(all, port)
}

// OfAnother reports whether the pod has the injected agent of a traffic-manager with another
// certificate authority, such as one that was installed before. That agent does not trust this
// traffic-manager.
func OfAnother(pod *corev1.Pod, authority []byte) bool {
	return slices.ContainsFunc(pod.Spec.InitContainers, func(c corev1.Container) bool {
		config, ok := configIn(c.Env)
		return ok && c.Name == AgentContainer && config.CA != string(authority)
	})
}

// servesPort reports whether one of the agents stands in front of a port.
func servesPort(agents []agentconfig.Config, port Port) bool {
	serves := func(p agentconfig.Port) bool {
		// An agent that took a port's name gets only the traffic of those who use the name.
		reached := p.Redirect || port.Via != ViaNftables
		return int32(p.App) == port.Port && p.Datagrams == (port.Protocol != "") && reached &&
			(port.Secret == "" || p.Secret == port.Secret)
	}
	return slices.ContainsFunc(agents, func(c agentconfig.Config) bool { return slices.ContainsFunc(c.Ports, serves) })
}

// configIn finds the configuration of an agent in the environment of its container.
func configIn(env []corev1.EnvVar) (agentconfig.Config, bool) {
	var config agentconfig.Config
	for _, e := range env {
		if e.Name == agentconfig.Env && json.Unmarshal([]byte(e.Value), &config) == nil {
			return config, true
		}
	}
	return config, false
}

// Mutate adds the agent to a pod, and puts the idle command in place of the containers that a
// laptop replaces. Of the pod's other containers it changes only port names and probes. A pod that
// already has the agent gets no second one. After an error the pod is unchanged.
func Mutate(pod *corev1.Pod, plan Plan, opt Options) error {
	mutated := pod.DeepCopy()
	for _, name := range plan.Replaced {
		if err := replace(&mutated.Spec, name, len(plan.Ports) > 0, opt); err != nil {
			return err
		}
	}
	obstructed := func(p Port) bool { return PortObstacle(&pod.ObjectMeta, &pod.Spec, p) != "" }
	plan.Ports = slices.DeleteFunc(slices.Clone(plan.Ports), obstructed)
	if err := addAgent(&mutated.ObjectMeta, &mutated.Spec, plan, opt); err != nil {
		return err
	}
	*pod = *mutated
	return nil
}

// addAgent adds the agent for the plan's ports, unless the pod has it or the plan has no port.
func addAgent(meta *metav1.ObjectMeta, spec *corev1.PodSpec, plan Plan, opt Options) error {
	isAgent := func(c corev1.Container) bool { return c.Name == AgentContainer }
	switch {
	case len(plan.Ports) == 0, slices.ContainsFunc(spec.InitContainers, isAgent):
		return nil
	case spec.HostNetwork:
		return errors.New("the pod uses the host's network: its ports cannot be intercepted")
	case spec.OS != nil && spec.OS.Name == corev1.Windows:
		return errors.New("the pod runs on Windows: only Linux pods can be intercepted")
	}
	used := usedPorts(meta, spec)
	a, err := arrange(plan.Ports, used, SecretsOf(spec))
	if err != nil {
		return err
	}
	for _, p := range a.containerPorts {
		if p.Name != "" {
			takeName(spec, p.Name, p.Protocol)
		}
	}
	config := agentconfig.Config{Manager: opt.Manager, Server: opt.Server, CA: string(opt.CA), Ports: a.configPorts}
	config.Aliases = aliasProbes(spec, a.redirected, used)
	raw, err := json.Marshal(config)
	if err != nil {
		return fmt.Errorf("encode the agent's configuration: %w", err)
	}
	env := []corev1.EnvVar{{Name: agentconfig.Env, Value: string(raw)}}
	// The agent is the first init container. So it listens before the rules send it traffic and
	// before other sidecars need the network. The kubelet stops native sidecars in reverse order,
	// so the agent is the last to end. It delays nobody: it is ready as soon as it listens.
	added := []corev1.Container{agentContainer(spec, opt, env, a.containerPorts)}
	mountCertificates(spec, &added[0], a.secrets)
	if a.needsRules {
		added = append(added, initContainer(spec, opt, env))
	}
	spec.InitContainers = append(added, spec.InitContainers...)
	spec.Volumes = append(spec.Volumes, corev1.Volume{Name: tokenVolume, VolumeSource: corev1.VolumeSource{
		Projected: agentToken(),
	}})
	return nil
}

// arrangement is what the ports of a plan mean for one pod.
type arrangement struct {
	configPorts    []agentconfig.Port
	containerPorts []corev1.ContainerPort // the agent's
	redirected     map[int32]bool         // TCP ports of the app
	secrets        []string               // that the agent mounts
	needsRules     bool                   // an init container has to set a redirect
}

// arrange assigns the agent's ports. It marks them in used. own are the Secrets that the pod uses:
// a port loses a Secret that the pod does not use any more.
func arrange(ports []Port, used map[int32]bool, own []string) (*arrangement, error) {
	a := &arrangement{redirected: map[int32]bool{}}
	for _, p := range ports {
		if used[p.AgentPort] {
			return nil, fmt.Errorf("port %d, which the traffic-agent needs, is not free in the pod: "+
				"run `detour intercept` again", p.AgentPort)
		}
		used[p.AgentPort] = true
		if !slices.Contains(own, p.Secret) {
			p.Secret = ""
		} else if !slices.Contains(a.secrets, p.Secret) {
			a.secrets = append(a.secrets, p.Secret)
		}
		a.configPorts = append(a.configPorts, agentconfig.Port{
			App: uint16(p.Port), Agent: uint16(p.AgentPort), Redirect: p.Via == ViaNftables,
			Secret: p.Secret, Datagrams: p.Protocol != "",
		})
		port := corev1.ContainerPort{
			ContainerPort: p.AgentPort, Protocol: cmp.Or(corev1.Protocol(p.Protocol), corev1.ProtocolTCP),
		}
		if p.Via == ViaTargetPort {
			port.Name = p.Name
		} else {
			a.needsRules = true
			if p.Protocol == "" {
				a.redirected[p.Port] = true
			}
		}
		a.containerPorts = append(a.containerPorts, port)
	}
	return a, nil
}

// agentToken is the volume with the agent's token for the traffic-manager.
func agentToken() *corev1.ProjectedVolumeSource {
	return &corev1.ProjectedVolumeSource{
		// The files are world-readable because root owns them. Only the agent mounts the volume. In
		// a pod with an fsGroup the kubelet gives the files to that group, which the agent is in.
		DefaultMode: ptr(int32(0o444)),
		Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{
			Audience: agentconfig.Audience, ExpirationSeconds: ptr(int64(3600)), Path: "token",
		}}},
	}
}

func agentContainer(
	spec *corev1.PodSpec, opt Options, env []corev1.EnvVar, ports []corev1.ContainerPort,
) corev1.Container {
	ready := corev1.ProbeHandler{
		HTTPGet: &corev1.HTTPGetAction{Path: "/readyz", Port: intstr.FromInt32(agentconfig.HealthPort)},
	}
	return corev1.Container{
		Name: AgentContainer, Image: opt.Image, ImagePullPolicy: opt.PullPolicy,
		Command: []string{"/traffic-keeper"}, Args: []string{"/traffic-agent", "agent"},
		Env: env, Ports: ports,
		RestartPolicy:  ptr(corev1.ContainerRestartPolicyAlways),
		StartupProbe:   &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 1, FailureThreshold: 60},
		ReadinessProbe: &corev1.Probe{ProbeHandler: ready, PeriodSeconds: 10, FailureThreshold: 3},
		Resources:      resources(spec),
		SecurityContext: &corev1.SecurityContext{
			RunAsUser:              ptr(int64(agentconfig.UserID)),
			RunAsGroup:             ptr(int64(agentconfig.UserID)),
			RunAsNonRoot:           ptr(true),
			ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		// The kubelet runs this hook when the pod begins to end, long before it stops the agent.
		// The agent then asks clients to go elsewhere while everything still works.
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{
			Exec: &corev1.ExecAction{Command: []string{"/traffic-agent", "pod-ends"}},
		}},
		VolumeMounts: []corev1.VolumeMount{{
			Name:      tokenVolume,
			MountPath: agentconfig.TokenDir,
			ReadOnly:  true,
		}},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
}

// initContainer sets the redirect and ends.
func initContainer(spec *corev1.PodSpec, opt Options, env []corev1.EnvVar) corev1.Container {
	return corev1.Container{
		Name: InitContainer, Image: opt.Image, ImagePullPolicy: opt.PullPolicy,
		Command: []string{"/traffic-agent"}, Args: []string{"init"}, Env: env,
		Resources:                resources(spec),
		SecurityContext:          rootWith("NET_ADMIN"),
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}
}

// rootWith returns the security context of a root that has only some capabilities. It has to be
// root because Kubernetes gives a container's capabilities to no other user.
func rootWith(capabilities ...corev1.Capability) *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsUser: ptr(int64(0)), RunAsGroup: ptr(int64(0)), RunAsNonRoot: ptr(false),
		ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
		Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: capabilities},
		SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}
