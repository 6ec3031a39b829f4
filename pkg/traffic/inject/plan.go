// Package inject decides how a service port is intercepted and adds the traffic-agent to a pod. Both are pure functions: the
// plan stands in an annotation of the pod template, and nothing else is looked at when a pod is made.
package inject

import (
	"encoding/json"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Annotation on a pod template holds the Plan. It is all that detour changes in a workload.
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

// Plan lists the app ports that the agent stands in front of.
type Plan struct {
	Ports []Port `json:"ports"`
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
}

// ParsePlan reads an annotation.
func ParsePlan(s string) (Plan, error) {
	var p Plan
	if s == "" {
		return p, nil
	}
	if err := json.Unmarshal([]byte(s), &p); err != nil {
		return p, fmt.Errorf("annotation %s: %w", Annotation, err)
	}
	return p, nil
}

// String is the annotation's value.
func (p Plan) String() string {
	raw, err := json.Marshal(p)
	if err != nil { // no field can fail
		panic(err)
	}
	return string(raw)
}

// Covers says whether the agent stands in front of port, in the same way.
func (p Plan) Covers(port Port) bool {
	return slices.ContainsFunc(p.Ports, func(q Port) bool {
		return q.Container == port.Container && q.Port == port.Port && q.Name == port.Name && q.Via == port.Via
	})
}

// With adds a port, on an agent port that neither the plan nor the pod uses.
func (p Plan) With(port Port, template *corev1.PodTemplateSpec) Plan {
	used := map[int32]bool{}
	for _, c := range append(slices.Clone(template.Spec.InitContainers), template.Spec.Containers...) {
		for _, cp := range c.Ports {
			used[cp.ContainerPort] = true
		}
	}
	kept := Plan{Restart: p.Restart}
	for _, q := range p.Ports {
		if q.Container == port.Container && q.Port == port.Port {
			continue // the same port, reached in another way
		}
		used[q.AgentPort] = true
		kept.Ports = append(kept.Ports, q)
	}
	port.AgentPort = firstAgentPort
	for used[port.AgentPort] {
		port.AgentPort++
	}
	kept.Ports = append(kept.Ports, port)
	return kept
}

// PlanPort decides how a service port of a workload is intercepted. Its errors are sentences for the user.
func PlanPort(svc *corev1.Service, sp corev1.ServicePort, template *corev1.PodTemplateSpec) (Port, error) {
	what := fmt.Sprintf("port %d of service %s", sp.Port, svc.Name)
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		return Port{}, fmt.Errorf("service %s is an ExternalName: it has no pods to intercept", svc.Name)
	case len(svc.Spec.Selector) == 0:
		return Port{}, fmt.Errorf("service %s has no selector: detour cannot know its pods", svc.Name)
	case sp.Protocol != "" && sp.Protocol != corev1.ProtocolTCP:
		return Port{}, fmt.Errorf("%s is %s: only TCP ports can be intercepted", what, sp.Protocol)
	case template.Spec.HostNetwork:
		return Port{}, fmt.Errorf("the pods of service %s use the host's network: their ports cannot be intercepted", svc.Name)
	}
	headless := svc.Spec.ClusterIP == corev1.ClusterIPNone
	if sp.TargetPort.Type == intstr.String {
		for _, c := range template.Spec.Containers {
			for _, cp := range c.Ports {
				if cp.Name != sp.TargetPort.StrVal {
					continue
				}
				if headless { // clients dial the pod's address with the app's own number
					return Port{Container: c.Name, Port: cp.ContainerPort, Via: ViaNftables}, nil
				}
				return Port{Container: c.Name, Port: cp.ContainerPort, Name: cp.Name, Via: ViaTargetPort}, nil
			}
		}
		return Port{}, fmt.Errorf("%s goes to the container port named %q, which no container of its pods has", what, sp.TargetPort.StrVal)
	}
	number := sp.TargetPort.IntVal
	if number == 0 {
		number = sp.Port
	}
	port := Port{Port: number, Via: ViaNftables}
	for _, c := range template.Spec.Containers {
		for _, cp := range c.Ports {
			if cp.ContainerPort == number {
				port.Container = c.Name
			}
		}
	}
	if port.Container == "" && len(template.Spec.Containers) > 0 {
		port.Container = template.Spec.Containers[0].Name
	}
	return port, nil
}
