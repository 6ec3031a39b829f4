package inject

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// SkipAnnotation on a pod template lists the ports that the agent leaves alone, with ranges, as in "15001,8000-8010".
const SkipAnnotation = "detour.dev/skip-inbound-ports"

// mesh is a service mesh whose proxy runs in the pods and takes what comes in, but for the ports in its own annotation.
type mesh struct {
	name, container, excludes string
	ports                     []int32 // of the proxy itself
}

var meshes = []mesh{
	{"Istio", "istio-proxy", "traffic.sidecar.istio.io/excludeInboundPorts", []int32{15000, 15001, 15004, 15006, 15008, 15009, 15020, 15021, 15053, 15090}},
	{"Linkerd", "linkerd-proxy", "config.linkerd.io/skip-inbound-ports", []int32{4140, 4143, 4190, 4191}},
}

func (m mesh) in(spec *corev1.PodSpec) bool {
	is := func(c corev1.Container) bool { return c.Name == m.container }
	return slices.ContainsFunc(spec.Containers, is) || slices.ContainsFunc(spec.InitContainers, is)
}

// PortObstacle says why the agent must not stand in front of a port of a pod, or nothing.
func PortObstacle(meta *metav1.ObjectMeta, spec *corev1.PodSpec, port Port) string {
	skipped, err := parsePorts(meta.Annotations[SkipAnnotation])
	switch {
	case err != nil:
		return fmt.Sprintf("cannot be judged, because in the pods' annotation %s %s: correct it", SkipAnnotation, err)
	case skipped.has(port.Port):
		return "is to be left alone: the pods' annotation " + SkipAnnotation + " lists it"
	}
	for _, m := range meshes {
		switch {
		case !m.in(spec):
		case slices.Contains(m.ports, port.Port):
			return fmt.Sprintf("belongs to the pods' %s proxy: it is left alone", m.name)
		case port.Via == ViaNftables && port.Protocol == "" && !m.excluded(meta, port.Port):
			return fmt.Sprintf("reaches the pods through their %s proxy, so that it cannot be redirected to the agent: give the container port a name, and the service that name as its targetPort, "+
				"or keep the port out of the mesh with the pods' annotation %s", m.name, m.excludes)
		}
	}
	return ""
}

// excluded says whether a port does not go through the proxy. What is not understood is not excluded.
func (m mesh) excluded(meta *metav1.ObjectMeta, port int32) bool {
	ports, err := parsePorts(meta.Annotations[m.excludes])
	return err == nil && ports.has(port)
}

// ports are ranges, the ends included.
type ports [][2]int32

func (p ports) has(port int32) bool {
	return slices.ContainsFunc(p, func(r [2]int32) bool { return r[0] <= port && port <= r[1] })
}

func parsePorts(list string) (ports, error) {
	var all ports
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
