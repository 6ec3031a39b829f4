package cli

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes"

	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// checkPorts complains of a port that is asked for twice, before anything is rolled out for the others. Where the service cannot be read the
// traffic-manager complains.
func (a *app) checkPorts(ctx context.Context, s *daemonv1.StatusResponse, requests []*daemonv1.InterceptRequest) error {
	if len(requests) < 2 {
		return nil
	}
	config, err := a.flags.ToRESTConfig()
	if err != nil || config.Host != s.Server {
		return nil
	}
	clients, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil
	}
	service, err := clients.CoreV1().Services(s.Namespace).Get(ctx, requests[0].Service, metav1.GetOptions{})
	if err != nil {
		return nil
	}
	return distinct(requests, service.Spec.Ports)
}

// distinct says which two requests, if any, are for the same port of a service's pods.
func distinct(requests []*daemonv1.InterceptRequest, ports []corev1.ServicePort) error {
	type target struct {
		port     intstr.IntOrString
		protocol corev1.Protocol
	}
	before := map[target]*daemonv1.InterceptRequest{}
	for _, r := range requests {
		i := slices.IndexFunc(ports, func(p corev1.ServicePort) bool {
			return (r.Port == p.Name || r.Port == strconv.Itoa(int(p.Port))) && (r.Protocol == "" || r.Protocol == string(p.Protocol))
		})
		if i < 0 {
			continue // the traffic-manager says which there are
		}
		t := target{ports[i].TargetPort, ports[i].Protocol}
		if other := before[t]; other != nil {
			return fmt.Errorf("--port %d:%s and --port %d:%s lead to the same port of the pods of service %s, whose traffic can go to one port of this laptop: leave one of them out", other.LocalPort, other.Port, r.LocalPort, r.Port, r.Service)
		}
		before[t] = r
	}
	return nil
}
