package daemon

import (
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// portConflict returns an error if two requests are for the same port of a service's pods.
func portConflict(requests []*daemonv1.InterceptRequest, ports []corev1.ServicePort) error {
	type target struct {
		port     intstr.IntOrString
		protocol corev1.Protocol
	}
	byTarget := map[target]*daemonv1.InterceptRequest{}
	for _, r := range requests {
		i := slices.IndexFunc(ports, func(p corev1.ServicePort) bool {
			return (r.Port == p.Name || r.Port == strconv.Itoa(int(p.Port))) &&
				(r.Protocol == "" || r.Protocol == string(p.Protocol))
		})
		if i < 0 {
			continue // the traffic-manager's error lists the ports that exist
		}
		t := target{ports[i].TargetPort, ports[i].Protocol}
		if other := byTarget[t]; other != nil {
			return fmt.Errorf("--port %d:%s and --port %d:%s lead to the same port of the pods of service %s, "+
				"whose traffic can go to one port of this laptop: leave one of them out",
				other.LocalPort, other.Port, r.LocalPort, r.Port, r.Service)
		}
		byTarget[t] = r
	}
	return nil
}
