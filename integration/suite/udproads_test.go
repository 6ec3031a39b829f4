package suite

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// UDP reaches the traffic-manager by a load balancer's address and by a port of its node as well as by a NodePort. The load balancer is what
// kube-proxy makes of an address that a cloud would have given the service.
func TestUDPByLoadBalancerAndHostPort(t *testing.T) {
	const balancer = "192.0.2.84" // of TEST-NET-1, RFC 5737
	other(t)
	target := kubectl(t, "-n", "other", "get", "service", "target", "-o", "jsonpath={.spec.clusterIP}")
	install := func(kind string) { detour(t, "install", "--image", managerImage, "--set", "udp.type="+kind) }
	t.Cleanup(func() { install("NodePort") })
	security := func(level string) {
		kubectl(t, "label", "namespace", "detour-system", "pod-security.kubernetes.io/enforce="+level, "--overwrite")
	}
	node := func() string {
		name := kubectl(t, "-n", "detour-system", "get", "pod", "-l", "app=traffic-manager", "-o", "jsonpath={.items[0].spec.nodeName}")
		return strings.Fields(kubectl(t, "get", "node", name, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`))[0]
	}
	r := newRoaming(t)
	require.Contains(t, refused(t, "install", "--image", managerImage, "--set", "udp.type=HostPort", "--timeout", "8s"), `violates PodSecurity "restricted:latest": hostPort`)
	security("privileged")
	t.Cleanup(func() { security("restricted") })
	for _, way := range []struct {
		kind    string
		address func() string
	}{
		{"LoadBalancer", func() string {
			kubectl(t, "-n", "detour-system", "patch", "service", "traffic-manager-udp", "--subresource=status", "-p", fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, balancer))
			r.run("ip", "route", "add", balancer, "via", node())
			return balancer
		}},
		{"HostPort", node},
	} {
		install(way.kind)
		address := way.address()
		r.detour("connect", "-n", "other")
		require.Eventually(t, func() bool { return r.status().TransportAddress == address+":8084" }, patience, patience/100, "%s", way.kind)
		require.Equal(t, "direct-udp", r.status().Transport)
		answers(t, r.dial(target))
		r.detour("quit")
	}
}
