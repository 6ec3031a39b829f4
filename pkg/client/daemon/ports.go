package daemon

import (
	"context"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// servicePorts are those of a service, as far as they could be read: a port may be said by its number, its name, or, where there is
// one, not at all.
type servicePorts []corev1.ServicePort

func (s *session) portsOf(ctx context.Context, service string) servicePorts {
	var svc corev1.Service
	if err := s.kube.Get(ctx, client.ObjectKey{Namespace: s.namespace, Name: service}, &svc); err != nil {
		s.log.Debug("reading the ports of the service failed", "service", service, "err", err)
	}
	return svc.Spec.Ports
}

// number of the port that is meant; 0 when nobody knows.
func (p servicePorts) number(said string) int32 {
	if said == "" && len(p) == 1 {
		return p[0].Port
	}
	if n, err := strconv.ParseInt(said, 10, 32); err == nil {
		return int32(n)
	}
	for _, port := range p {
		if said != "" && port.Name == said {
			return port.Port
		}
	}
	return 0
}

// same says whether two ways to say a port mean the same one.
func (p servicePorts) same(a, b string) bool {
	return a == b || p.number(a) != 0 && p.number(a) == p.number(b)
}
