package inject

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestSaysTLS(t *testing.T) {
	probed := func(scheme corev1.URIScheme, host string, port intstr.IntOrString) *corev1.PodTemplateSpec {
		p := pod()
		handler := httpGet(port)
		handler.HTTPGet.Scheme, handler.HTTPGet.Host = scheme, host
		p.Spec.Containers[0].LivenessProbe = &corev1.Probe{ProbeHandler: handler}
		return &corev1.PodTemplateSpec{Spec: p.Spec}
	}
	plain := &corev1.PodTemplateSpec{Spec: pod().Spec}
	for name, c := range map[string]struct {
		protocol string
		template *corev1.PodTemplateSpec
		want     string
	}{
		"nothing":                   {"", plain, ""},
		"HTTP":                      {"http", plain, ""},
		"h2c":                       {"kubernetes.io/h2c", plain, ""},
		"appProtocol":               {"HTTPS", plain, "its appProtocol is HTTPS"},
		"WebSockets over TLS":       {"kubernetes.io/wss", plain, "its appProtocol is kubernetes.io/wss"},
		"a probe":                   {"", probed(corev1.URISchemeHTTPS, "", intstr.FromInt32(8080)), "container app is probed with HTTPS"},
		"a probe of the named port": {"", probed(corev1.URISchemeHTTPS, "", intstr.FromString("http")), "container app is probed with HTTPS"},
		"a probe of another port":   {"", probed(corev1.URISchemeHTTPS, "", intstr.FromInt32(8443)), ""},
		"a probe of another host":   {"", probed(corev1.URISchemeHTTPS, "192.0.2.1", intstr.FromInt32(8080)), ""},
		"a probe of plain HTTP":     {"", probed(corev1.URISchemeHTTP, "", intstr.FromInt32(8080)), ""},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, SaysTLS(c.protocol, c.template, symbolic())) })
	}
}
