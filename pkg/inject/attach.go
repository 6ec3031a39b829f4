package inject

import (
	"encoding/json"
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

// ViaAttach is the redirect of an agent in an ephemeral container: that agent redirects the port by
// itself.
const ViaAttach = "attach"

// attachedPrefix is the prefix of the names of ephemeral containers with an agent.
const attachedPrefix = AgentContainer + "-"

// maxFailures is how many attached agents of a pod may fail in a row before Attach refuses the pod.
const maxFailures = 3

// Attach returns an ephemeral container whose agent stands in front of ports of a running pod. It
// does not change the pod. Its errors are sentences for the user.
func Attach(pod *corev1.Pod, ports []int32, opt Options) (*corev1.EphemeralContainer, error) {
	if err := repeatedFailure(pod); err != nil {
		return nil, err
	}
	mount, token, err := tokenMount(pod)
	if err != nil {
		return nil, err
	}
	config := agentconfig.Config{
		Manager: opt.Manager, Server: opt.Server, CA: string(opt.CA),
		Attached: &agentconfig.Attached{Token: token},
	}
	for _, port := range ports {
		if why := PortObstacle(&pod.ObjectMeta, &pod.Spec, Port{Port: port, Via: ViaNftables}); why != "" {
			return nil, fmt.Errorf("port %d of pod %s %s", port, pod.Name, why)
		}
		probed, err := isProbed(pod, port)
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
		// Kubernetes never removes or restarts an ephemeral container: each one needs a new name.
		Name:  fmt.Sprintf("%s%d", attachedPrefix, len(attachedContainers(pod))),
		Image: opt.Image, ImagePullPolicy: opt.PullPolicy,
		Command: []string{"/traffic-agent"}, Args: []string{"agent"},
		Env:          []corev1.EnvVar{{Name: agentconfig.Env, Value: string(raw)}},
		VolumeMounts: []corev1.VolumeMount{mount},
		// NET_ADMIN sets the redirect. DAC_OVERRIDE reads the token: when all containers of a pod
		// run as one user, the kubelet lets only that user read it.
		SecurityContext:          rootWith("NET_ADMIN", "DAC_OVERRIDE"),
		TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
	}}, nil
}

// attachedContainers returns the ephemeral containers with agents, oldest first.
func attachedContainers(pod *corev1.Pod) []corev1.EphemeralContainer {
	other := func(c corev1.EphemeralContainer) bool { return !strings.HasPrefix(c.Name, attachedPrefix) }
	return slices.DeleteFunc(slices.Clone(pod.Spec.EphemeralContainers), other)
}

// terminations returns the final states of the ephemeral containers that have ended, by name.
func terminations(pod *corev1.Pod) map[string]*corev1.ContainerStateTerminated {
	all := map[string]*corev1.ContainerStateTerminated{}
	for _, c := range pod.Status.EphemeralContainerStatuses {
		if c.State.Terminated != nil {
			all[c.Name] = c.State.Terminated
		}
	}
	return all
}

// repeatedFailure returns an error when the last maxFailures agents of a pod have failed.
func repeatedFailure(pod *corev1.Pod) error {
	all, ended := attachedContainers(pod), terminations(pod)
	if len(all) < maxFailures {
		return nil
	}
	var last *corev1.ContainerStateTerminated
	for _, c := range all[len(all)-maxFailures:] {
		if last = ended[c.Name]; last == nil || last.ExitCode == 0 {
			return nil
		}
	}
	return fmt.Errorf("the last %d traffic-agents in pod %s failed, the newest with %q (exit code %d)",
		maxFailures, pod.Name, strings.TrimSpace(last.Message), last.ExitCode)
}

// tokenMount returns a mount of a volume that holds a token of the pod's service account, and the
// token's file. Kubernetes does not let an ephemeral container add a volume, so the token has to be
// in one of the pod's volumes. A token for the traffic-manager comes before a general one.
func tokenMount(pod *corev1.Pod) (mount corev1.VolumeMount, file string, err error) {
	for _, audience := range []string{agentconfig.Audience, ""} {
		for _, v := range pod.Spec.Volumes {
			if v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				if t := s.ServiceAccountToken; t != nil && t.Audience == audience {
					mount := corev1.VolumeMount{Name: v.Name, MountPath: agentconfig.TokenDir, ReadOnly: true}
					return mount, path.Join(agentconfig.TokenDir, t.Path), nil
				}
			}
		}
	}
	return mount, "", fmt.Errorf("pod %s has no service account token (automountServiceAccountToken: false), "+
		"so its agent could not prove its identity", pod.Name)
}

// isProbed reports whether the kubelet probes the app over HTTP or gRPC on a port. It refuses a
// port with an HTTPS probe: the probe of a running pod cannot be changed, and the agent cannot tell
// it from other traffic.
func isProbed(pod *corev1.Pod, port int32) (probed bool, err error) {
	for c := range servers(&pod.Spec) {
		for _, p := range probes(c) {
			switch {
			case p.GRPC != nil && p.GRPC.Port == port:
				probed = true
			case p.HTTPGet != nil && p.HTTPGet.Host == "" && numberOf(c, p.HTTPGet.Port) == port:
				probed = true
				if p.HTTPGet.Scheme == corev1.URISchemeHTTPS {
					return false, fmt.Errorf("the kubelet probes port %d of pod %s with HTTPS, "+
						"which the traffic-agent cannot tell from other traffic", port, pod.Name)
				}
			}
		}
	}
	return probed, nil
}

// IsAttached reports whether an attached agent runs, or is about to run, in the pod.
func IsAttached(pod *corev1.Pod) bool { return len(attachedConfigs(pod)) > 0 }

// attachedConfigs returns the configurations of the attached agents that have not ended.
func attachedConfigs(pod *corev1.Pod) []agentconfig.Config {
	ended := terminations(pod)
	var all []agentconfig.Config
	for _, c := range attachedContainers(pod) {
		if config, ok := configIn(c.Env); ok && ended[c.Name] == nil {
			all = append(all, config)
		}
	}
	return all
}
