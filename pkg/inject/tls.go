package inject

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/detour-dev/detour/pkg/agentconfig"
)

// TLSEvidence returns what shows that the app speaks TLS on a port: the service's appProtocol or an
// HTTPS probe. An empty string proves nothing. The name of a port is no evidence: often another
// proxy has ended TLS before the port that a service calls "https".
func TLSEvidence(appProtocol string, template *corev1.PodTemplateSpec, port Port) string {
	if slices.Contains([]string{"https", "tls", "kubernetes.io/wss"}, strings.ToLower(appProtocol)) {
		return "its appProtocol is " + appProtocol
	}
	for c := range servers(&template.Spec) {
		for _, probe := range probes(c) {
			if h := probe.HTTPGet; h != nil && h.Scheme == corev1.URISchemeHTTPS && h.Host == "" &&
				numberOf(c, h.Port) == port.Port {
				return fmt.Sprintf("the kubelet probes container %s with HTTPS", c.Name)
			}
		}
	}
	return ""
}

// numberOf returns the number of a container's port, or 0 when the container has no such port.
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

// SecretsOf returns the names of the Secrets that a pod's own containers use. An agent gets no
// other Secret: otherwise everybody who may intercept could have any Secret of the namespace
// mounted into a pod.
func SecretsOf(spec *corev1.PodSpec) []string {
	var names []string
	add := func(name string) {
		if name != "" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	for _, v := range spec.Volumes {
		if v.Secret != nil {
			add(v.Secret.SecretName)
		}
		if v.Projected != nil {
			for _, source := range v.Projected.Sources {
				if source.Secret != nil {
					add(source.Secret.Name)
				}
			}
		}
	}
	for c := range servers(spec) {
		for _, e := range c.Env {
			if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
				add(e.ValueFrom.SecretKeyRef.Name)
			}
		}
		for _, e := range c.EnvFrom {
			if e.SecretRef != nil {
				add(e.SecretRef.Name)
			}
		}
	}
	return names
}

// mountCertificates mounts the certificate and the key of Secrets into the agent, and nothing else
// of them. The volumes are optional: a pod starts although the Secret no longer exists.
func mountCertificates(spec *corev1.PodSpec, agent *corev1.Container, secrets []string) {
	for i, secret := range secrets {
		volume := fmt.Sprintf("traffic-agent-certificate-%d", i)
		spec.Volumes = append(spec.Volumes, corev1.Volume{
			Name: volume,
			VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
				// The files are world-readable: root owns them, and only the agent mounts them.
				SecretName: secret, Optional: ptr(true), DefaultMode: ptr(int32(0o444)),
				Items: []corev1.KeyToPath{
					{Key: corev1.TLSCertKey, Path: corev1.TLSCertKey},
					{Key: corev1.TLSPrivateKeyKey, Path: corev1.TLSPrivateKeyKey},
				},
			}},
		})
		agent.VolumeMounts = append(agent.VolumeMounts, corev1.VolumeMount{
			Name: volume, MountPath: path.Join(agentconfig.CertificatesDir, secret), ReadOnly: true,
		})
	}
}
