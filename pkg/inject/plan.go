// Package inject decides how a service port is intercepted and adds the traffic-agent to a pod. Both are pure functions: the
// plan stands in an annotation of the pod template, and nothing else is looked at when a pod is made.
package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

// Annotation on a pod template holds the Plan. It is all that detour changes in a workload, but for an Argo Rollout, which has it itself and is
// restarted.
const Annotation = "detour.dev/agent"

// How traffic reaches the agent.
const (
	ViaTargetPort = "targetPort" // the agent's port takes over the symbolic name; no privilege
	ViaNftables   = "nftables"   // an init container redirects the app's port
)

const (
	firstAgentPort = 9900
	firstAlias     = 9950
)

// Plan lists the app ports that the agent stands in front of, and the containers that do not run.
type Plan struct {
	Ports []Port `json:"ports,omitempty"`
	// Replaced are the containers whose work a laptop does: an idle one is in their place.
	Replaced []string `json:"replaced,omitempty"`
	// Restart is changed to make new pods although the ports are the same.
	Restart string `json:"restart,omitempty"`
}

// Port is one app port.
type Port struct {
	Container string `json:"container"`
	Port      int32  `json:"port"`
	Name      string `json:"name,omitempty"` // the symbolic name, when it is taken over
	Via       string `json:"via"`
	AgentPort int32  `json:"agentPort"`
	Protocol  string `json:"protocol,omitempty"` // "UDP"; nothing for TCP
	// Secret is one of the pod's own, with the app's certificate: the agent has it too, and looks into TLS.
	Secret string `json:"secret,omitempty"`
}

// ParsePlan reads an annotation.
func ParsePlan(s string) (Plan, error) {
	var p Plan
	if s == "" {
		return p, nil
	}
	if err := json.Unmarshal([]byte(s), &p); err != nil {
		return Plan{}, fmt.Errorf("annotation %s: %w", Annotation, err)
	}
	agents := map[int32]bool{}
	for _, q := range p.Ports {
		switch {
		case !isPort(q.Port) || !isPort(q.AgentPort) || agents[q.AgentPort] || q.AgentPort == agentconfig.HealthPort:
			return Plan{}, fmt.Errorf("annotation %s: port %d with agent port %d is not usable", Annotation, q.Port, q.AgentPort)
		case q.Via != ViaTargetPort && q.Via != ViaNftables, q.Via == ViaTargetPort && q.Name == "":
			return Plan{}, fmt.Errorf("annotation %s: port %d has no way to reach the agent", Annotation, q.Port)
		}
		agents[q.AgentPort] = true
	}
	return p, nil
}

func isPort(n int32) bool { return n > 0 && n < 1<<16 }

// String is the annotation's value.
func (p Plan) String() string {
	raw, err := json.Marshal(p)
	if err != nil { // no field can fail
		panic(err)
	}
	return string(raw)
}

// reaches says whether what is meant to reach the agent by want does so by p as well: a redirected port catches everything,
// whatever name a service knows it by.
func (p Port) reaches(want Port) bool {
	return p.Port == want.Port && p.Protocol == want.Protocol && (p.Via == ViaNftables || p.Via == want.Via && p.Name == want.Name)
}

// Covers says whether the agent already stands in front of port, and has the certificate that it needs.
func (p Plan) Covers(port Port) bool {
	return slices.ContainsFunc(p.Ports, func(q Port) bool { return q.reaches(port) && (port.Secret == "" || q.Secret == port.Secret) })
}

// SecretOf is the Secret with which the agent looks into a port's TLS.
func (p Plan) SecretOf(port Port) string {
	for _, q := range p.Ports {
		if q.reaches(port) {
			return q.Secret
		}
	}
	return ""
}

// With adds a port, on an agent port that neither the plan nor the pod uses. It gives back the same plan when it covers the
// port already.
func (p Plan) With(port Port, template *corev1.PodTemplateSpec) Plan {
	if p.Covers(port) {
		return p
	}
	used := portsOf(&template.ObjectMeta, &template.Spec)
	used[port.Port] = true // whether it is declared or not
	kept := Plan{Replaced: p.Replaced, Restart: p.Restart}
	for _, q := range p.Ports {
		used[q.AgentPort], used[q.Port] = true, true
		if q.reaches(port) {
			// It lacks the certificate alone.
			secret := port.Secret
			port = q
			port.Secret = secret
			continue
		}
		if port.reaches(q) {
			port.Secret = cmp.Or(port.Secret, q.Secret)
			continue // redirected from now on, so its name need not be taken
		}
		kept.Ports = append(kept.Ports, q)
	}
	if port.AgentPort == 0 {
		port.AgentPort = firstFree(firstAgentPort, used)
	}
	kept.Ports = append(kept.Ports, port)
	return kept
}

// portsOf are the ports that the pod's containers declare, the agent's own, and those that are to be left alone.
func portsOf(meta *metav1.ObjectMeta, spec *corev1.PodSpec) map[int32]bool {
	used := map[int32]bool{agentconfig.HealthPort: true}
	skipped, _ := parsePorts(meta.Annotations[SkipAnnotation]) // an error is PortObstacle's to tell
	for _, r := range skipped {
		for n := r[0]; n <= r[1]; n++ {
			used[n] = true
		}
	}
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		for _, p := range c.Ports {
			used[p.ContainerPort] = true
		}
	}
	return used
}

func firstFree(port int32, used map[int32]bool) int32 {
	for used[port] {
		port++
	}
	return port
}

// PlanPort decides how a service port of a workload is intercepted. Its errors are sentences for the user.
func PlanPort(svc *corev1.Service, sp corev1.ServicePort, template *corev1.PodTemplateSpec) (Port, error) {
	what := fmt.Sprintf("port %d of service %s", sp.Port, svc.Name)
	spec := &template.Spec
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return Port{}, fmt.Errorf("service %s is an ExternalName: it has no pods to intercept", svc.Name)
	case len(svc.Spec.Selector) == 0:
		return Port{}, fmt.Errorf("service %s has no selector: detour cannot know its pods", svc.Name)
	case sp.Protocol != "" && sp.Protocol != corev1.ProtocolTCP && sp.Protocol != corev1.ProtocolUDP:
		return Port{}, fmt.Errorf("%s is %s: only TCP and UDP ports can be intercepted", what, sp.Protocol)
	case spec.HostNetwork:
		return Port{}, fmt.Errorf("the pods of service %s use the host's network: their ports cannot be intercepted", svc.Name)
	case spec.OS != nil && spec.OS.Name == corev1.Windows:
		return Port{}, fmt.Errorf("the pods of service %s run on Windows: only Linux pods can be intercepted", svc.Name)
	}
	port, err := targetOf(svc, sp, spec, what)
	if err != nil {
		return Port{}, err
	}
	if sp.Protocol == corev1.ProtocolUDP {
		port.Protocol = string(corev1.ProtocolUDP)
	}
	if why := PortObstacle(&template.ObjectMeta, spec, port); why != "" {
		return Port{}, fmt.Errorf("%s goes to container port %d, which %s", what, port.Port, why)
	}
	if port.Protocol != "" {
		return port, nil
	}
	if port.Port == agentconfig.HealthPort {
		return Port{}, fmt.Errorf("%s goes to container port %d, which the traffic-agent needs for itself: let the container listen on another port", what, port.Port)
	}
	return port, nil
}

// targetOf finds the container port.
func targetOf(svc *corev1.Service, sp corev1.ServicePort, spec *corev1.PodSpec, what string) (Port, error) {
	if sp.TargetPort.Type == intstr.String {
		for c := range servers(spec) {
			for _, cp := range c.Ports {
				if cp.Name != sp.TargetPort.StrVal || !is(cp, sp.Protocol) {
					continue
				}
				if svc.Spec.ClusterIP == corev1.ClusterIPNone {
					// Clients of a headless service have the pod's address and dial the app's own number.
					return Port{Container: c.Name, Port: cp.ContainerPort, Via: ViaNftables}, nil
				}
				return Port{Container: c.Name, Port: cp.ContainerPort, Name: cp.Name, Via: ViaTargetPort}, nil
			}
		}
		return Port{}, fmt.Errorf("%s goes to the container port named %q, which no container of its pods has: correct the service's targetPort", what, sp.TargetPort.StrVal)
	}
	port := Port{Port: sp.TargetPort.IntVal, Via: ViaNftables}
	if port.Port == 0 {
		port.Port = sp.Port
	}
	for c := range servers(spec) {
		if port.Container == "" || slices.ContainsFunc(c.Ports, func(cp corev1.ContainerPort) bool { return cp.ContainerPort == port.Port && is(cp, sp.Protocol) }) {
			// Declaring a port is optional: the first container is as good a guess as any, and only shown to people.
			port.Container = c.Name
		}
	}
	return port, nil
}

// is says whether a port is of a protocol, which is TCP where nothing is said.
func is(p corev1.ContainerPort, protocol corev1.Protocol) bool {
	return cmp.Or(p.Protocol, corev1.ProtocolTCP) == cmp.Or(protocol, corev1.ProtocolTCP)
}

// servers are the containers that can serve, in the order in which Kubernetes looks a port's name up: the ordinary ones, then the native
// sidecars.
func servers(spec *corev1.PodSpec) func(func(*corev1.Container) bool) {
	return func(yield func(*corev1.Container) bool) {
		for i := range spec.Containers {
			if !yield(&spec.Containers[i]) {
				return
			}
		}
		for i := range spec.InitContainers {
			c := &spec.InitContainers[i]
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways && c.Name != AgentContainer && !yield(c) {
				return
			}
		}
	}
}
