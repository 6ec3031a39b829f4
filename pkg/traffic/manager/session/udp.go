package session

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/wellknown"
)

// How laptops reach the traffic-manager's UDP port from outside of the cluster.
const (
	UDPNodePort     = "NodePort"
	UDPLoadBalancer = "LoadBalancer"
	UDPHostPort     = "HostPort"
)

const (
	// udpService is the Service of the UDP port. It is separate from the traffic-manager's other
	// Service because its type is another one.
	udpService = wellknown.TrafficManager + "-udp"
	// maxUDPNodes is how many nodes a session's status lists. Any node leads to the
	// traffic-manager.
	maxUDPNodes = 3
	// maxUDPEndpoints is how many endpoints a session's status may have.
	maxUDPEndpoints = 16
)

// CheckUDP returns an error if kind is not a way to reach the UDP port. Empty means that there is
// none.
func CheckUDP(kind string) error {
	if !slices.Contains([]string{"", UDPNodePort, UDPLoadBalancer, UDPHostPort}, kind) {
		return fmt.Errorf("--udp=%s is unknown: use %s, %s or %s, or leave it empty",
			kind, UDPNodePort, UDPLoadBalancer, UDPHostPort)
	}
	return nil
}

// findUDPEndpoints returns where laptops may reach the traffic-manager with datagrams, as
// host:port, the preferred endpoints first.
func (r *Reconciler) findUDPEndpoints(ctx context.Context) ([]string, error) {
	if r.config.UDP == "" {
		return nil, nil
	}
	var nodes corev1.NodeList
	if err := r.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	own := r.config.NodeName
	if r.config.UDP == UDPHostPort {
		ownNode := slices.DeleteFunc(nodes.Items, func(n corev1.Node) bool { return n.Name != own })
		all := nodeEndpoints(ownNode, own, int32(r.config.UDPHostPort))
		return all[:min(len(all), maxUDPEndpoints)], nil
	}
	var service corev1.Service
	if err := r.Get(ctx, client.ObjectKey{Namespace: r.config.PodNamespace, Name: udpService}, &service); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	all := serviceEndpoints(&service, nodes.Items, own)
	return all[:min(len(all), maxUDPEndpoints)], nil
}

// serviceEndpoints returns the load balancer's addresses, followed by those of the nodes.
func serviceEndpoints(service *corev1.Service, nodes []corev1.Node, own string) []string {
	var all []string
	for _, port := range service.Spec.Ports {
		for _, i := range service.Status.LoadBalancer.Ingress {
			for _, host := range []string{i.IP, i.Hostname} {
				if host != "" {
					all = append(all, net.JoinHostPort(host, strconv.Itoa(int(port.Port))))
				}
			}
		}
		if port.NodePort != 0 {
			all = append(all, nodeEndpoints(nodes, own, port.NodePort)...)
		}
	}
	return all
}

// nodeEndpoints returns a port of some nodes. The traffic-manager's own node comes first, because
// it needs no further hop. Each node's public addresses come before those that only its network can
// reach.
func nodeEndpoints(nodes []corev1.Node, own string, port int32) []string {
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n corev1.Node) bool { return n.Name != own && !nodeReady(&n) })
	slices.SortFunc(nodes, func(a, b corev1.Node) int {
		if (a.Name == own) != (b.Name == own) {
			if a.Name == own {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Name, b.Name)
	})
	var all []string
	for _, n := range nodes[:min(len(nodes), maxUDPNodes)] {
		for _, kind := range []corev1.NodeAddressType{corev1.NodeExternalIP, corev1.NodeInternalIP} {
			for _, a := range n.Status.Addresses {
				if a.Type == kind {
					all = append(all, net.JoinHostPort(a.Address, strconv.Itoa(int(port))))
				}
			}
		}
	}
	return all
}

func nodeReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
