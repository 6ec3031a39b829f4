package suite

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// UDP reaches the traffic-manager through a load balancer's address and through a port of its node,
// as well as through a NodePort. The load balancer is what kube-proxy makes of an address that a
// cloud would have given to the Service.
func TestUDPByLoadBalancerAndHostPort(t *testing.T) {
	const balancer = "192.0.2.84" // of TEST-NET-1, RFC 5737
	kit.DeployTarget(t)
	target := kit.Query(t, "other", "service target", "{.spec.clusterIP}")
	install := func(kind string) { kit.Detour(t, "install", "--image", kit.ManagerImage, "--set", "udp.type="+kind) }
	t.Cleanup(func() { install("NodePort") })
	security := func(level string) {
		kit.Kubectl(t, "label", "namespace", "detour-system", "pod-security.kubernetes.io/enforce="+level,
			"--overwrite")
	}
	node := func() string {
		name := kit.Query(t, "detour-system", "pod -l app=traffic-manager", "{.items[0].spec.nodeName}")
		return strings.Fields(kit.Kubectl(t, "get", "node", name, "-o",
			`jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`))[0]
	}
	r := kit.NewRoamingLaptop(t)
	require.Contains(t, kit.DetourFails(t, "install", "--image", kit.ManagerImage, "--set", "udp.type=HostPort",
		"--timeout", "8s"), `violates PodSecurity "restricted:latest": hostPort`)
	security("privileged")
	t.Cleanup(func() { security("restricted") })
	for _, way := range []struct {
		kind    string
		address func() string
	}{
		{"LoadBalancer", func() string {
			kit.Kubectl(t, "-n", "detour-system", "patch", "service", "traffic-manager-udp", "--subresource=status",
				"-p", fmt.Sprintf(`{"status":{"loadBalancer":{"ingress":[{"ip":%q}]}}}`, balancer))
			r.Exec("ip", "route", "add", balancer, "via", node())
			return balancer
		}},
		{"HostPort", node},
	} {
		install(way.kind)
		address := way.address()
		r.Detour("connect", "-n", "other")
		kit.Eventually(t, func() bool { return r.Status().TransportAddress == address+":8084" }, "%s", way.kind)
		require.Equal(t, "direct-udp", r.Status().Transport)
		kit.RequireTargetAnswers(t, r.Dial(target))
		r.Detour("quit")
	}
}
