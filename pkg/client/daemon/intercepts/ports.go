package intercepts

import (
	"context"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// servicePorts are the ports of a service, or nothing if they could not be read. A user writes a
// port as its number, as its name, or not at all if the service has only one.
type servicePorts []corev1.ServicePort

func (s *Set) portsOf(ctx context.Context, service string) servicePorts {
	svc, err := s.Cluster.Core.CoreV1().Services(s.Cluster.Namespace).Get(ctx, service, metav1.GetOptions{})
	if err != nil {
		s.Log.Debug("reading the ports of the service failed", "service", service, "err", err)
		return nil
	}
	return svc.Spec.Ports
}

// number returns the number of a port; 0 means unknown.
func (p servicePorts) number(text string) int32 {
	if text == "" && len(p) == 1 {
		return p[0].Port
	}
	if n, err := strconv.ParseInt(text, 10, 32); err == nil {
		return int32(n)
	}
	for _, port := range p {
		if text != "" && port.Name == text {
			return port.Port
		}
	}
	return 0
}

// same reports whether two texts mean the same port.
func (p servicePorts) same(a, b string) bool {
	return a == b || p.number(a) != 0 && p.number(a) == p.number(b)
}
