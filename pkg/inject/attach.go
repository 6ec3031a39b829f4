package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

// ViaAttach is how traffic reaches an agent that was put into a running pod: it redirects the port itself.
const ViaAttach = "attach"

// attachedPrefix begins the names of the ephemeral containers.
const attachedPrefix = AgentContainer + "-"

// maxFailures is how many attached agents of a pod may fail one after another before it is given up.
const maxFailures = 3

// Attach makes the ephemeral container that puts an agent before ports of a running pod. Its errors are sentences for the user.
func Attach(pod *corev1.Pod, ports []int32, opt Options) (*corev1.EphemeralContainer, error) {
	if err := failing(pod); err != nil {
		return nil, err
	}
	mount, token, err := tokenMount(pod)
	if err != nil {
		return nil, err
	}
	config := agentconfig.Config{Manager: opt.Manager, Server: opt.Server, CA: string(opt.CA), Attached: &agentconfig.Attached{Token: token}}
	for _, port := range ports {
		if why := PortObstacle(&pod.ObjectMeta, &pod.Spec, Port{Port: port, Via: ViaNftables}); why != "" {
			return nil, fmt.Errorf("port %d of pod %s %s", port, pod.Name, why)
		}
		probed, err := probesOf(pod, port)
		if err != nil {
			return nil, err
		}
		config.Ports = append(config.Ports, agentconfig.Port{App: uint16(port), Redirect: true, Probed: probed})
	}
	raw, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("encode the agent's configuration: %w", err)
	}
	return &corev1.EphemeralContainer{EphemeralContainerCommon: corev1.EphemeralContainerCommon{
		// A name is used once: the container stays in the pod's spec when it has ended, and cannot be started again.
		Name: fmt.Sprintf("%s%d", attachedPrefix, len(ours(pod))), Image: opt.Image, ImagePullPolicy: opt.PullPolicy, Command: []string{"/traffic-agent"}, Args: []string{"agent"},
		Env: []corev1.EnvVar{{Name: agentconfig.Env, Value: string(raw)}}, VolumeMounts: []corev1.VolumeMount{mount},
		// NET_ADMIN is for the redirection. The kubelet gives the token to the app's user alone where all containers have the same.
		SecurityContext: &corev1.SecurityContext{
			RunAsUser: ptr(int64(0)), RunAsGroup: ptr(int64(0)), RunAsNonRoot: ptr(false), ReadOnlyRootFilesystem: ptr(true), AllowPrivilegeEscalation: ptr(false),
			Capabilities:   &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}, Add: []corev1.Capability{"NET_ADMIN", "DAC_OVERRIDE"}},
			SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
		},
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}}, nil
}

// ours are the ephemeral containers with agents, in the order in which they came.
func ours(pod *corev1.Pod) []corev1.EphemeralContainer {
	return slices.DeleteFunc(slices.Clone(pod.Spec.EphemeralContainers), func(c corev1.EphemeralContainer) bool { return !strings.HasPrefix(c.Name, attachedPrefix) })
}

// ends are how ephemeral containers ended, by their names.
func ends(pod *corev1.Pod) map[string]*corev1.ContainerStateTerminated {
	all := map[string]*corev1.ContainerStateTerminated{}
	for _, c := range pod.Status.EphemeralContainerStatuses {
		if c.State.Terminated != nil {
			all[c.Name] = c.State.Terminated
		}
	}
	return all
}

// failing gives a pod up in which one agent after another has failed.
func failing(pod *corev1.Pod) error {
	all, ended := ours(pod), ends(pod)
	if len(all) < maxFailures {
		return nil
	}
	var last *corev1.ContainerStateTerminated
	for _, c := range all[len(all)-maxFailures:] {
		if last = ended[c.Name]; last == nil || last.ExitCode == 0 {
			return nil
		}
	}
	return fmt.Errorf("the traffic-agents that were attached to pod %s failed, the last with %q (exit code %d)", pod.Name, strings.TrimSpace(last.Message), last.ExitCode)
}

// tokenMount finds a token of the pod's service account among its volumes: an ephemeral container can bring none of its own.
func tokenMount(pod *corev1.Pod) (mount corev1.VolumeMount, file string, err error) {
	for _, audience := range []string{agentconfig.Audience, ""} {
		for _, v := range pod.Spec.Volumes {
			if v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				if t := s.ServiceAccountToken; t != nil && t.Audience == audience {
					return corev1.VolumeMount{Name: v.Name, MountPath: agentconfig.TokenDir, ReadOnly: true}, path.Join(agentconfig.TokenDir, t.Path), nil
				}
			}
		}
	}
	return mount, "", fmt.Errorf("pod %s has no service account token (automountServiceAccountToken: false), by which its agent could prove who it is", pod.Name)
}

// probesOf says whether the kubelet asks the app over HTTP on a port. A probe of a running pod cannot be sent elsewhere.
func probesOf(pod *corev1.Pod, port int32) (probed bool, err error) {
	for c := range servers(&pod.Spec) {
		for _, p := range probes(c) {
			switch {
			case p.GRPC != nil && p.GRPC.Port == port:
				probed = true
			case p.HTTPGet != nil && p.HTTPGet.Host == "" && numberOf(c, p.HTTPGet.Port) == port:
				probed = true
				if p.HTTPGet.Scheme == corev1.URISchemeHTTPS {
					return false, errors.New("the kubelet's HTTPS probe could not be told from the traffic")
				}
			}
		}
	}
	return probed, nil
}

// IsAttached says whether an agent that was attached may run in the pod.
func IsAttached(pod *corev1.Pod) bool { return len(attached(pod)) > 0 }

// attached are the configurations of the agents that were attached and have not ended.
func attached(pod *corev1.Pod) []agentconfig.Config {
	ended := ends(pod)
	var all []agentconfig.Config
	for _, c := range ours(pod) {
		if config, ok := configIn(c.Env); ok && ended[c.Name] == nil {
			all = append(all, config)
		}
	}
	return all
}
