package cli

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// Two ports may be said in different words and be the same all the same.
func TestDistinctPorts(t *testing.T) {
	ports := []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: intstr.FromString("web"), Protocol: corev1.ProtocolTCP},
		{Name: "old", Port: 81, TargetPort: intstr.FromString("web"), Protocol: corev1.ProtocolTCP},
		{Name: "dns", Port: 53, TargetPort: intstr.FromInt32(5353), Protocol: corev1.ProtocolUDP},
		{Name: "dns-tcp", Port: 53, TargetPort: intstr.FromInt32(5353), Protocol: corev1.ProtocolTCP},
	}
	for name, c := range map[string]struct {
		flags []string
		err   string
	}{
		"a name and its number":    {[]string{"8080:http", "8081:80"}, "--port 8080:http and --port 8081:80 lead to the same port of the pods of service web, whose traffic can go to one port of this laptop: leave one of them out"},
		"two ports of one target":  {[]string{"8080:http", "8081:81"}, "--port 8080:http and --port 8081:81 lead to the same port"},
		"of both protocols":        {[]string{"5353:53/udp", "5353:53/tcp"}, ""},
		"one local port for two":   {[]string{"8080:http", "8080:dns-tcp"}, ""},
		"a name and the protocol":  {[]string{"5353:dns", "5354:53/udp"}, "--port 5353:dns and --port 5354:53 lead to the same port"},
		"what the service has not": {[]string{"8080:http", "8081:nothing"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var requests []*daemonv1.InterceptRequest
			for _, flag := range c.flags {
				wishes, err := parsePorts(flag)
				require.NoError(t, err)
				requests = append(requests, &daemonv1.InterceptRequest{Service: "web", LocalPort: wishes[0].local, Port: wishes[0].remote, Protocol: wishes[0].protocol})
			}
			if err := distinct(requests, ports); c.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
			}
		})
	}
}
