package inject

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestTLSEvidence(t *testing.T) {
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
		"nothing":             {"", plain, ""},
		"HTTP":                {"http", plain, ""},
		"h2c":                 {"kubernetes.io/h2c", plain, ""},
		"appProtocol":         {"HTTPS", plain, "its appProtocol is HTTPS"},
		"WebSockets over TLS": {"kubernetes.io/wss", plain, "its appProtocol is kubernetes.io/wss"},
		"a probe": {
			template: probed(corev1.URISchemeHTTPS, "", intstr.FromInt32(8080)),
			want:     "the kubelet probes container app with HTTPS",
		},
		"a probe of the named port": {
			template: probed(corev1.URISchemeHTTPS, "", intstr.FromString("http")),
			want:     "the kubelet probes container app with HTTPS",
		},
		"a probe of another port": {"", probed(corev1.URISchemeHTTPS, "", intstr.FromInt32(8443)), ""},
		"a probe of another host": {"", probed(corev1.URISchemeHTTPS, "192.0.2.1", intstr.FromInt32(8080)), ""},
		"a probe of plain HTTP":   {"", probed(corev1.URISchemeHTTP, "", intstr.FromInt32(8080)), ""},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.want, TLSEvidence(c.protocol, c.template, symbolic())) })
	}
}

func TestSecretsOf(t *testing.T) {
	p := pod(func(p *corev1.Pod) {
		p.Spec.Volumes = []corev1.Volume{
			{Name: "none"},
			{Name: "tls", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "mounted"}}},
			{
				Name: "all",
				VolumeSource: corev1.VolumeSource{
					Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
						{
							Secret: &corev1.SecretProjection{
								LocalObjectReference: corev1.LocalObjectReference{Name: "projected"},
							},
						},
						{ConfigMap: &corev1.ConfigMapProjection{}},
					}},
				},
			},
		}
		p.Spec.Containers[0].Env = []corev1.EnvVar{{
			Name: "a",
			ValueFrom: &corev1.EnvVarSource{
				SecretKeyRef: &corev1.SecretKeySelector{
					LocalObjectReference: corev1.LocalObjectReference{Name: "variable"},
				},
			},
		}}
		p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{
			SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "mounted"}},
		}}
	})
	assert.Equal(t, []string{"mounted", "projected", "variable"}, SecretsOf(&p.Spec))
}

// A Secret that the pod's own containers do not have is not given to the agent, whatever the
// annotation says.
func TestMutateGivesNoOtherSecret(t *testing.T) {
	p := pod()
	port := symbolic()
	port.Secret = "another"
	require.NoError(t, Mutate(p, Plan{Ports: []Port{port}}, options()))
	assert.Equal(t, []string{}, append([]string{}, SecretsOf(&p.Spec)...))
	assert.True(t, HasAgent(p, symbolic()))
	assert.False(t, HasAgent(p, port))
}

// A port gets its certificate without moving, and keeps it for those who do not ask for it.
func TestPlanWithSecret(t *testing.T) {
	template := &corev1.PodTemplateSpec{Spec: pod().Spec}
	plain, secured := symbolic(), symbolic()
	secured.Secret = "web-tls"
	first := Plan{}.With(plain, template)
	assert.False(t, first.Covers(secured))
	second := first.With(secured, template)
	require.Len(t, second.Ports, 1)
	assert.Equal(t, first.Ports[0].AgentPort, second.Ports[0].AgentPort)
	assert.Equal(t, "web-tls", second.SecretOf(plain))
	assert.True(t, second.Covers(plain))
	other := secured
	other.Secret = "other-tls"
	assert.Equal(t, "other-tls", second.With(other, template).SecretOf(plain))
	third := second.With(numeric(), template)
	require.Len(t, third.Ports, 1)
	assert.Equal(t, ViaNftables, third.Ports[0].Via)
	assert.Equal(t, "web-tls", third.SecretOf(secured))
	fourth := Plan{}.With(numeric(), template).With(secured, template)
	require.Len(t, fourth.Ports, 1)
	assert.Equal(t, ViaNftables, fourth.Ports[0].Via, "it is redirected already")
	assert.Equal(t, "web-tls", fourth.Ports[0].Secret)
}
