// Package inject decides how a service port is intercepted, and adds the traffic-agent to a pod.
// Both are pure functions. The Plan connects them: the traffic-manager writes it into an annotation
// of the pod template, and the webhook reads only that annotation when a pod is created. Start with
// Plan, PlanPort and Mutate.
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

// Annotation holds the Plan of a pod template. It is the only change that detour makes to a
// workload. An Argo Rollout carries the annotation itself, and detour restarts its pods.
const Annotation = "detour.dev/agent"

// The redirects of an injected agent: how traffic reaches it.
const (
	ViaTargetPort = "targetPort" // the agent's port takes the name of the app's; needs no privilege
	ViaNftables   = "nftables"   // an init container redirects the app's port
)

const (
	firstAgentPort = 9900
	firstAlias     = 9950
)

// Plan lists the app ports that the agent stands in front of, and the containers that a laptop
// replaces. The zero Plan changes nothing in a pod.
type Plan struct {
	Ports []Port `json:"ports,omitempty"`
	// Replaced names the containers whose work a laptop does. An idle command runs in their place.
	Replaced []string `json:"replaced,omitempty"`
	// Restart is any text. A new text makes new pods although the ports are the same.
	Restart string `json:"restart,omitempty"`
}

// Port is one app port.
type Port struct {
	Container string `json:"container"`
	Port      int32  `json:"port"`
	Name      string `json:"name,omitempty"` // the port's name, when the agent takes it
	Via       string `json:"via"`
	AgentPort int32  `json:"agentPort"`
	Protocol  string `json:"protocol,omitempty"` // "UDP"; empty means TCP
	// Secret names a Secret of the pod that holds the app's certificate. The agent uses it to read
	// requests inside TLS.
	Secret string `json:"secret,omitempty"`
}

// ParsePlan parses the value of the annotation. An empty value is the zero Plan.
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
			return Plan{}, fmt.Errorf("annotation %s: port %d with agent port %d is not usable",
				Annotation, q.Port, q.AgentPort)
		case q.Via != ViaTargetPort && q.Via != ViaNftables, q.Via == ViaTargetPort && q.Name == "":
			return Plan{}, fmt.Errorf("annotation %s: port %d has no redirect to the agent", Annotation, q.Port)
		}
		agents[q.AgentPort] = true
	}
	return p, nil
}

func isPort(n int32) bool { return n > 0 && n < 1<<16 }

// String returns the value of the annotation.
func (p Plan) String() string {
	raw, err := json.Marshal(p)
	if err != nil { // every field can be encoded
		panic(err)
	}
	return string(raw)
}

// reaches reports whether traffic for want reaches the agent by p too. A redirected port catches
// everything, whatever name a service uses for it.
func (p Port) reaches(want Port) bool {
	return p.Port == want.Port && p.Protocol == want.Protocol &&
		(p.Via == ViaNftables || p.Via == want.Via && p.Name == want.Name)
}

// Covers reports whether the agent already stands in front of port, with the certificate that port
// needs.
func (p Plan) Covers(port Port) bool {
	return slices.ContainsFunc(p.Ports, func(q Port) bool {
		return q.reaches(port) && (port.Secret == "" || q.Secret == port.Secret)
	})
}

// SecretOf returns the Secret with which the agent reads inside a port's TLS, or an empty string.
func (p Plan) SecretOf(port Port) string {
	for _, q := range p.Ports {
		if q.reaches(port) {
			return q.Secret
		}
	}
	return ""
}

// With returns the plan with one more port, on an agent port that neither the plan nor the pod
// uses. It returns the same plan when that covers the port already.
func (p Plan) With(port Port, template *corev1.PodTemplateSpec) Plan {
	if p.Covers(port) {
		return p
	}
	used := usedPorts(&template.ObjectMeta, &template.Spec)
	used[port.Port] = true // the container may not declare it
	next := Plan{Replaced: p.Replaced, Restart: p.Restart}
	for _, q := range p.Ports {
		used[q.AgentPort], used[q.Port] = true, true
		if q.reaches(port) {
			// Only the certificate is missing.
			secret := port.Secret
			port = q
			port.Secret = secret
			continue
		}
		if port.reaches(q) {
			port.Secret = cmp.Or(port.Secret, q.Secret)
			continue // the new redirect catches this port too, so the agent need not take its name
		}
		next.Ports = append(next.Ports, q)
	}
	if port.AgentPort == 0 {
		port.AgentPort = firstFree(firstAgentPort, used)
	}
	next.Ports = append(next.Ports, port)
	return next
}

// usedPorts returns the ports that the agent must not choose: those that the pod's containers
// declare, the agent's own, and those of SkipAnnotation.
func usedPorts(meta *metav1.ObjectMeta, spec *corev1.PodSpec) map[int32]bool {
	used := map[int32]bool{agentconfig.HealthPort: true}
	skipped, _ := parsePorts(meta.Annotations[SkipAnnotation]) // PortObstacle reports the error
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

// firstFree returns the first port from port on that is not used.
func firstFree(port int32, used map[int32]bool) int32 {
	for used[port] {
		port++
	}
	return port
}

// PlanPort decides how a service port of a workload is intercepted. The result has no agent port
// yet: With chooses one. Its errors are sentences for the user.
func PlanPort(svc *corev1.Service, sp corev1.ServicePort, template *corev1.PodTemplateSpec) (Port, error) {
	what := fmt.Sprintf("port %d of service %s", sp.Port, svc.Name)
	spec := &template.Spec
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return Port{}, fmt.Errorf("service %s is an ExternalName: it has no pods to intercept", svc.Name)
	case len(svc.Spec.Selector) == 0:
		return Port{}, fmt.Errorf("service %s has no selector: detour cannot find its pods", svc.Name)
	case sp.Protocol != "" && sp.Protocol != corev1.ProtocolTCP && sp.Protocol != corev1.ProtocolUDP:
		return Port{}, fmt.Errorf("%s is %s: only TCP and UDP ports can be intercepted", what, sp.Protocol)
	case spec.HostNetwork:
		return Port{}, fmt.Errorf("the pods of service %s use the host's network: their ports cannot be intercepted",
			svc.Name)
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
		return Port{}, fmt.Errorf("%s goes to container port %d, which the traffic-agent needs for itself: "+
			"let the container listen on another port", what, port.Port)
	}
	return port, nil
}

// targetOf finds the container port that a service port leads to. The text what names the service
// port in errors.
func targetOf(svc *corev1.Service, sp corev1.ServicePort, spec *corev1.PodSpec, what string) (Port, error) {
	if sp.TargetPort.Type == intstr.String {
		for c := range servers(spec) {
			for _, cp := range c.Ports {
				if cp.Name != sp.TargetPort.StrVal || !hasProtocol(cp, sp.Protocol) {
					continue
				}
				if svc.Spec.ClusterIP == corev1.ClusterIPNone {
					// Clients of a headless service know the pod's address and dial the app's port
					// by its number.
					return Port{Container: c.Name, Port: cp.ContainerPort, Via: ViaNftables}, nil
				}
				return Port{Container: c.Name, Port: cp.ContainerPort, Name: cp.Name, Via: ViaTargetPort}, nil
			}
		}
		return Port{}, fmt.Errorf("%s goes to the container port %q, but no container of its pods "+
			"has a port of that name: correct the service's targetPort", what, sp.TargetPort.StrVal)
	}
	port := Port{Port: sp.TargetPort.IntVal, Via: ViaNftables}
	if port.Port == 0 {
		port.Port = sp.Port
	}
	for c := range servers(spec) {
		if port.Container == "" || slices.ContainsFunc(c.Ports, func(cp corev1.ContainerPort) bool {
			return cp.ContainerPort == port.Port && hasProtocol(cp, sp.Protocol)
		}) {
			// A container need not declare its port. The first container is a guess, which only
			// people see.
			port.Container = c.Name
		}
	}
	return port, nil
}

// hasProtocol reports whether a port has a protocol. TCP is the default of both.
func hasProtocol(p corev1.ContainerPort, protocol corev1.Protocol) bool {
	return cmp.Or(p.Protocol, corev1.ProtocolTCP) == cmp.Or(protocol, corev1.ProtocolTCP)
}

// servers iterates over the containers that can serve: the ordinary ones, then the native sidecars,
// except the agent. This is the order in which Kubernetes resolves the name of a port.
func servers(spec *corev1.PodSpec) func(func(*corev1.Container) bool) {
	return func(yield func(*corev1.Container) bool) {
		for i := range spec.Containers {
			if !yield(&spec.Containers[i]) {
				return
			}
		}
		for i := range spec.InitContainers {
			c := &spec.InitContainers[i]
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways &&
				c.Name != AgentContainer && !yield(c) {
				return
			}
		}
	}
}
