package inject

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SkipAnnotation is an annotation of a pod template. It lists ports and ranges of ports that the
// agent must not intercept, as in "15001,8000-8010".
const SkipAnnotation = "detour.dev/skip-inbound-ports"

// mesh is a service mesh. Its proxy runs in the pods and receives all incoming connections, except
// those to the ports in an annotation.
type mesh struct {
	name       string
	container  string  // name of the proxy's container
	annotation string  // lists the ports that the proxy leaves alone
	ports      []int32 // the proxy's own
}

var meshes = []mesh{
	{
		name: "Istio", container: "istio-proxy", annotation: "traffic.sidecar.istio.io/excludeInboundPorts",
		ports: []int32{15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090},
	},
	{
		name: "Linkerd", container: "linkerd-proxy", annotation: "config.linkerd.io/skip-inbound-ports",
		ports: []int32{4140, 4143, 4190, 4191},
	},
}

// runsIn reports whether a pod has the mesh's proxy.
func (m mesh) runsIn(spec *corev1.PodSpec) bool {
	is := func(c corev1.Container) bool { return c.Name == m.container }
	return slices.ContainsFunc(spec.Containers, is) || slices.ContainsFunc(spec.InitContainers, is)
}

// PortObstacle returns why the agent must not stand in front of a port of a pod, or an empty string
// when it may. The reason continues a sentence that begins with the port.
func PortObstacle(meta *metav1.ObjectMeta, spec *corev1.PodSpec, port Port) string {
	skipped, err := parsePorts(meta.Annotations[SkipAnnotation])
	switch {
	case err != nil:
		return fmt.Sprintf("cannot be intercepted, because in the pods' annotation %s %s: correct it",
			SkipAnnotation, err)
	case skipped.has(port.Port):
		return "must not be intercepted: the pods' annotation " + SkipAnnotation + " lists it"
	}
	for _, m := range meshes {
		switch {
		case !m.runsIn(spec):
		case slices.Contains(m.ports, port.Port):
			return fmt.Sprintf("belongs to the pods' %s proxy and cannot be intercepted", m.name)
		case port.Via == ViaNftables && port.Protocol == "" && !m.excluded(meta, port.Port):
			return fmt.Sprintf("passes through the pods' %s proxy and cannot be redirected to the agent: "+
				"name the container port and use that name as the service's targetPort, "+
				"or exclude the port from the mesh with the pods' annotation %s", m.name, m.annotation)
		}
	}
	return ""
}

// excluded reports whether the proxy leaves a port alone. It reports false when it cannot parse the
// annotation.
func (m mesh) excluded(meta *metav1.ObjectMeta, port int32) bool {
	ports, err := parsePorts(meta.Annotations[m.annotation])
	return err == nil && ports.has(port)
}

// portRanges are ranges of ports; both ends are included.
type portRanges [][2]int32

func (p portRanges) has(port int32) bool {
	return slices.ContainsFunc(p, func(r [2]int32) bool { return r[0] <= port && port <= r[1] })
}

// parsePorts parses a comma-separated list of ports and ranges.
func parsePorts(list string) (portRanges, error) {
	var all portRanges
	for text := range strings.SplitSeq(list, ",") {
		text = strings.TrimSpace(text)
		if text == "" {
			continue
		}
		first, last, isRange := strings.Cut(text, "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		to, err2 := strconv.ParseUint(last, 10, 16)
		if err != nil || err2 != nil || from == 0 || from > to {
			return nil, fmt.Errorf("%q is neither a port nor a range of ports", text)
		}
		all = append(all, [2]int32{int32(from), int32(to)})
	}
	return all, nil
}
