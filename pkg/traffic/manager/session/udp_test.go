package session

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func node(name string, isReady corev1.ConditionStatus, addresses ...corev1.NodeAddress) corev1.Node {
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Status: corev1.NodeStatus{
			Addresses: addresses, Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: isReady}},
		},
	}
}

func address(kind corev1.NodeAddressType, a string) corev1.NodeAddress {
	return corev1.NodeAddress{Type: kind, Address: a}
}

func TestServiceEndpoints(t *testing.T) {
	nodes := []corev1.Node{
		node("d", corev1.ConditionTrue, address(corev1.NodeInternalIP, "10.0.0.4")),
		node("c", corev1.ConditionTrue, address(corev1.NodeInternalIP, "10.0.0.3"),
			address(corev1.NodeInternalIP, "fd00::3"), address(corev1.NodeHostName, "c")),
		node("a", corev1.ConditionUnknown, address(corev1.NodeInternalIP, "10.0.0.1")),
		node("b", corev1.ConditionTrue,
			address(corev1.NodeInternalIP, "10.0.0.2"), address(corev1.NodeExternalIP, "192.0.2.2")),
		node("e", corev1.ConditionTrue, address(corev1.NodeInternalIP, "10.0.0.5")),
	}
	port := []corev1.ServicePort{{Port: 8084, NodePort: 30777}}
	balanced := corev1.ServiceStatus{LoadBalancer: corev1.LoadBalancerStatus{
		Ingress: []corev1.LoadBalancerIngress{{IP: "198.51.100.1"}, {Hostname: "lb.example.com"}},
	}}
	for name, c := range map[string]struct {
		service corev1.Service
		nodes   []corev1.Node
		want    []string
	}{
		"the own node first, only ready nodes, and not all of them": {
			service: corev1.Service{Spec: corev1.ServiceSpec{Ports: port}}, nodes: nodes,
			want: []string{
				"10.0.0.3:30777", "[fd00::3]:30777", "192.0.2.2:30777", "10.0.0.2:30777", "10.0.0.4:30777",
			},
		},
		"the load balancer before the nodes": {
			service: corev1.Service{Spec: corev1.ServiceSpec{Ports: port}, Status: balanced}, nodes: nodes[4:],
			want: []string{"198.51.100.1:8084", "lb.example.com:8084", "10.0.0.5:30777"},
		},
		"a load balancer without an address yet": {
			service: corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 8084}}}}, nodes: nodes,
		},
		"no nodes": {service: corev1.Service{Spec: corev1.ServiceSpec{Ports: port}}},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, serviceEndpoints(&c.service, c.nodes, "c")) })
	}
}

func TestCheckUDP(t *testing.T) {
	for _, kind := range []string{"", UDPNodePort, UDPLoadBalancer, UDPHostPort} {
		require.NoError(t, CheckUDP(kind))
	}
	require.ErrorContains(t, CheckUDP("ClusterIP"), "--udp=ClusterIP is unknown")
}
