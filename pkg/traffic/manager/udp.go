package manager

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

// The ways in which laptops reach the WireGuard port from outside the cluster.
const (
	UDPNodePort     = "NodePort"
	UDPLoadBalancer = "LoadBalancer"
	UDPHostPort     = "HostPort"
)

const (
	// udpService is the Service of the WireGuard port. It is separate from the traffic-manager's
	// other Service because its type differs.
	udpService = wellknown.TrafficManager + "-udp"
	// maxUDPNodes is how many nodes are named to the laptops; any node leads to the traffic-manager.
	maxUDPNodes     = 3
	maxUDPEndpoints = 16
)

func checkUDP(kind string) error {
	if !slices.Contains([]string{"", UDPNodePort, UDPLoadBalancer, UDPHostPort}, kind) {
		return fmt.Errorf("--udp=%s is not known: use %s, %s, %s, or leave it empty", kind, UDPNodePort, UDPLoadBalancer, UDPHostPort)
	}
	return nil
}

// udpEndpoints are where laptops may reach the traffic-manager with datagrams, as host:port, the preferred ones first.
func (r *sessionReconciler) udpEndpoints(ctx context.Context) ([]string, error) {
	if r.options.UDP == "" {
		return nil, nil
	}
	var nodes corev1.NodeList
	if err := r.List(ctx, &nodes); err != nil {
		return nil, fmt.Errorf("list the nodes: %w", err)
	}
	if r.options.UDP == UDPHostPort {
		own := slices.DeleteFunc(nodes.Items, func(n corev1.Node) bool { return n.Name != r.options.NodeName })
		all := nodeEndpoints(own, r.options.NodeName, int32(r.options.UDPHostPort))
		return all[:min(len(all), maxUDPEndpoints)], nil
	}
	var service corev1.Service
	if err := r.Get(ctx, client.ObjectKey{Namespace: r.options.PodNamespace, Name: udpService}, &service); err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	all := serviceEndpoints(&service, nodes.Items, r.options.NodeName)
	return all[:min(len(all), maxUDPEndpoints)], nil
}

// serviceEndpoints are the load balancer's addresses, and then the nodes'.
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

// nodeEndpoints are a port of some nodes: the traffic-manager's own first, because it is the shortest way, and each one's public addresses
// before those that only its own network knows.
func nodeEndpoints(nodes []corev1.Node, own string, port int32) []string {
	nodes = slices.DeleteFunc(slices.Clone(nodes), func(n corev1.Node) bool { return n.Name != own && !ready(&n) })
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

func ready(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
}
