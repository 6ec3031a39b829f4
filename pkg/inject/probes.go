package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

func ptr[T any](v T) *T { return &v }

// takeName renames the container ports with a name, so that services find the agent's port under
// it. Probes and hooks that used the name reach the app by number instead.
func takeName(spec *corev1.PodSpec, name string, protocol corev1.Protocol) {
	for c := range servers(spec) {
		for i := range c.Ports {
			p := &c.Ports[i]
			if p.Name != name || !hasProtocol(*p, protocol) {
				continue
			}
			p.Name = freeName(c, p.ContainerPort)
			if protocol == corev1.ProtocolUDP {
				continue // the kubelet probes no UDP port
			}
			eachPort(c, func(port *intstr.IntOrString) {
				if port.Type == intstr.String && port.StrVal == name {
					*port = intstr.FromInt32(p.ContainerPort)
				}
			})
		}
	}
}

// freeName returns a port name that no port of the container has, of at most 15 characters, which
// is the limit of Kubernetes.
func freeName(c *corev1.Container, number int32) string {
	name := fmt.Sprintf("detour-%d", number)
	for n := 'a'; slices.ContainsFunc(c.Ports, func(p corev1.ContainerPort) bool { return p.Name == name }); n++ {
		name = fmt.Sprintf("detour-%d-%c", number, n)
	}
	return name
}

// aliasProbes points the probes and hooks of redirected ports to alias ports. The redirect sends an
// alias port to the app whatever happens to the port itself. It marks the aliases as used.
func aliasProbes(spec *corev1.PodSpec, redirected, used map[int32]bool) []agentconfig.Alias {
	aliases := map[int32]int32{}
	var list []agentconfig.Alias
	aliasOf := func(number int32) int32 {
		if aliases[number] == 0 {
			alias := firstFree(firstAlias, used)
			used[alias] = true
			aliases[number] = alias
			list = append(list, agentconfig.Alias{Alias: uint16(alias), App: uint16(number)})
		}
		return aliases[number]
	}
	for c := range servers(spec) {
		eachPort(c, func(port *intstr.IntOrString) {
			number := port.IntVal
			if port.Type == intstr.String {
				number = 0
				for _, p := range c.Ports {
					if p.Name == port.StrVal {
						number = p.ContainerPort
					}
				}
			}
			if redirected[number] {
				*port = intstr.FromInt32(aliasOf(number))
			}
		})
		for _, probe := range probes(c) {
			if probe.GRPC != nil && redirected[probe.GRPC.Port] {
				probe.GRPC.Port = aliasOf(probe.GRPC.Port)
			}
		}
	}
	return list
}

// probes returns the probes that the container has.
func probes(c *corev1.Container) []*corev1.Probe {
	return slices.DeleteFunc([]*corev1.Probe{c.StartupProbe, c.ReadinessProbe, c.LivenessProbe},
		func(p *corev1.Probe) bool { return p == nil })
}

// eachPort calls visit for each port that the kubelet dials on the pod's address: the ports of HTTP
// and TCP probes and of lifecycle hooks.
func eachPort(c *corev1.Container, visit func(*intstr.IntOrString)) {
	http := func(a *corev1.HTTPGetAction) {
		if a != nil && a.Host == "" {
			visit(&a.Port)
		}
	}
	tcp := func(a *corev1.TCPSocketAction) {
		if a != nil && a.Host == "" {
			visit(&a.Port)
		}
	}
	for _, probe := range probes(c) {
		http(probe.HTTPGet)
		tcp(probe.TCPSocket)
	}
	if c.Lifecycle == nil {
		return
	}
	for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if hook != nil {
			http(hook.HTTPGet)
			tcp(hook.TCPSocket)
		}
	}
}
