package daemon

import (
	"testing"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// A service's port can be written as a number or as a name, and two of its ports can have one
// target.
func TestPortConflict(t *testing.T) {
	ports := []corev1.ServicePort{
		{Name: "http", Port: 80, TargetPort: intstr.FromString("web"), Protocol: corev1.ProtocolTCP},
		{Name: "old", Port: 81, TargetPort: intstr.FromString("web"), Protocol: corev1.ProtocolTCP},
		{Name: "dns", Port: 53, TargetPort: intstr.FromInt32(5353), Protocol: corev1.ProtocolUDP},
		{Name: "dns-tcp", Port: 53, TargetPort: intstr.FromInt32(5353), Protocol: corev1.ProtocolTCP},
	}
	request := func(local uint32, port, protocol string) *daemonv1.InterceptRequest {
		return &daemonv1.InterceptRequest{Service: "web", LocalPort: local, Port: port, Protocol: protocol}
	}
	for name, c := range map[string]struct {
		first, second *daemonv1.InterceptRequest
		err           string
	}{
		"a name and its number": {
			first: request(8080, "http", ""), second: request(8081, "80", ""),
			err: "--port 8080:http and --port 8081:80 lead to the same port of the pods of service web, " +
				"whose traffic can go to one port of this laptop: leave one of them out",
		},
		"two ports of one target": {
			first: request(8080, "http", ""), second: request(8081, "81", ""),
			err: "--port 8080:http and --port 8081:81 lead to the same port",
		},
		"one number of both protocols": {first: request(5353, "53", "UDP"), second: request(5353, "53", "TCP")},
		"one local port for two ports": {first: request(8080, "http", ""), second: request(8080, "dns-tcp", "")},
		"a port the service lacks":     {first: request(8080, "http", ""), second: request(8081, "nothing", "")},
		"a name and number with protocol": {
			first: request(5353, "dns", ""), second: request(5354, "53", "UDP"),
			err: "--port 5353:dns and --port 5354:53 lead to the same port",
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := portConflict([]*daemonv1.InterceptRequest{c.first, c.second}, ports)
			if c.err == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.err)
			}
		})
	}
}
