package inject

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// SaysTLS says where the cluster's objects have it that the app speaks TLS on a port: the service's appProtocol, or a probe. It is empty
// where they say nothing, which proves nothing. The name of a port is no sign: behind a service's "https" TLS has often ended already.
func SaysTLS(appProtocol string, template *corev1.PodTemplateSpec, port Port) string {
	if slices.Contains([]string{"https", "tls", "kubernetes.io/wss"}, strings.ToLower(appProtocol)) {
		return "its appProtocol is " + appProtocol
	}
	for c := range servers(&template.Spec) {
		for _, probe := range probes(c) {
			if h := probe.HTTPGet; h != nil && h.Scheme == corev1.URISchemeHTTPS && h.Host == "" && numberOf(c, h.Port) == port.Port {
				return fmt.Sprintf("container %s is probed with HTTPS", c.Name)
			}
		}
	}
	return ""
}

func numberOf(c *corev1.Container, port intstr.IntOrString) int32 {
	if port.Type == intstr.Int {
		return port.IntVal
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return p.ContainerPort
		}
	}
	return 0
}
