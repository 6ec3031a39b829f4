package inject

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func withToken(audience, path string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{
			Name: "token-" + path,
			VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{
					ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: audience, Path: path},
				}},
			}},
		})
	}
}

func TestAttach(t *testing.T) {
	p := pod(withToken("", "token"))
	require.False(t, IsAttached(p))
	c, err := Attach(p, []int32{8080}, options())
	require.NoError(t, err)
	assert.Equal(t, "traffic-agent-0", c.Name)
	assert.Equal(t,
		[]corev1.VolumeMount{{Name: "token-token", MountPath: "/var/run/secrets/detour.dev", ReadOnly: true}},
		c.VolumeMounts)
	config, ok := configIn(c.Env)
	require.True(t, ok)
	assert.Equal(t, "/var/run/secrets/detour.dev/token", config.Attached.Token)
	assert.False(t, config.Ports[0].Probed)

	p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, *c)
	assert.True(t, IsAttached(p))
	assert.True(t, HasAgent(p, Port{Port: 8080}))
	assert.False(t, HasAgent(p, Port{Port: 8081}))

	ended := func(code int32) corev1.ContainerStatus {
		return corev1.ContainerStatus{
			Name: c.Name,
			State: corev1.ContainerState{
				Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: "no nftables"},
			},
		}
	}
	p.Status.EphemeralContainerStatuses = []corev1.ContainerStatus{ended(0)}
	assert.False(t, IsAttached(p), "it has ended")
	assert.False(t, HasAgent(p, Port{Port: 8080}))
	again, err := Attach(p, []int32{8080}, options())
	require.NoError(t, err)
	assert.Equal(t, "traffic-agent-1", again.Name, "one that has ended cannot be started again")
}

// A sidecar that took over a port's name is not reached by who dials the pod's own port, and there
// an agent can be attached.
func TestAttachBesideASidecar(t *testing.T) {
	p := pod(withToken("", "token"))
	require.NoError(t, Mutate(p, Plan{Ports: []Port{symbolic()}}, options()))
	assert.True(t, HasAgent(p, symbolic()))
	assert.False(t, HasAgent(p, numeric()))
	c, err := Attach(p, []int32{8080}, options())
	require.NoError(t, err)
	p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, *c)
	assert.True(t, HasAgent(p, numeric()))
	assert.True(t, HasSidecar(p, symbolic()))
	assert.False(t, HasSidecar(p, numeric()))
}

func TestAttachSeveralPorts(t *testing.T) {
	p := pod(withToken("", "token"))
	c, err := Attach(p, []int32{8080, 9090}, options())
	require.NoError(t, err)
	p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, *c)
	assert.True(t, HasAgent(p, Port{Port: 8080}))
	assert.True(t, HasAgent(p, Port{Port: 9090}))
	assert.False(t, HasAgent(p, Port{Port: 9090, Protocol: "UDP"}))
}

// A pod is given up when the last agents have all failed, and not for one that was killed now and
// then.
func TestAttachGivesUp(t *testing.T) {
	for name, c := range map[string]struct {
		codes []int32 // of the agents that ended
		gone  bool
	}{
		"never":                   {nil, false},
		"once":                    {[]int32{1}, false},
		"thrice":                  {[]int32{1, 137, 1}, true},
		"thrice after some good":  {[]int32{0, 0, 1, 1, 1}, true},
		"with a good one between": {[]int32{1, 1, 0, 1}, false},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod(withToken("", "token"))
			for _, code := range c.codes {
				one, err := Attach(p, []int32{8080}, options())
				require.NoError(t, err)
				p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, *one)
				failed := corev1.ContainerState{
					Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Message: "no nftables\n"},
				}
				p.Status.EphemeralContainerStatuses = append(p.Status.EphemeralContainerStatuses,
					corev1.ContainerStatus{Name: one.Name, State: failed})
			}
			_, err := Attach(p, []int32{8080}, options())
			if c.gone {
				require.ErrorContains(t, err, `failed, the newest with "no nftables" (exit code 1)`)
			} else {
				require.NoError(t, err)
			}
		})
	}
}

func TestAttachTakesItsOwnTokenBeforeThePods(t *testing.T) {
	c, err := Attach(pod(withToken("", "token"), withToken("detour-traffic-manager", "own")), []int32{8080}, options())
	require.NoError(t, err)
	config, _ := configIn(c.Env)
	assert.Equal(t, "/var/run/secrets/detour.dev/own", config.Attached.Token)
	_, err = Attach(pod(withToken("vault", "token")), []int32{8080}, options())
	require.ErrorContains(t, err, "no service account token")
}

func TestAttachKnowsProbes(t *testing.T) {
	probe := func(h corev1.ProbeHandler) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{ProbeHandler: h} }
	}
	secure := httpGet(intstr.FromString("http"))
	secure.HTTPGet.Scheme = corev1.URISchemeHTTPS
	for name, c := range map[string]struct {
		handler corev1.ProbeHandler
		want    bool
		err     string
	}{
		"HTTP by name":   {httpGet(intstr.FromString("http")), true, ""},
		"HTTP by number": {httpGet(intstr.FromInt32(8080)), true, ""},
		"another port":   {httpGet(intstr.FromInt32(8081)), false, ""},
		"gRPC":           {corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 8080}}, true, ""},
		"TCP": {
			handler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(8080)}},
		},
		"in the container": {corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}, false, ""},
		"HTTPS":            {secure, false, "with HTTPS"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Attach(pod(withToken("", "token"), probe(c.handler)), []int32{8080}, options())
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			config, _ := configIn(got.Env)
			assert.Equal(t, c.want, config.Ports[0].Probed)
		})
	}
}

// An attached agent redirects, so what a mesh's proxy redirects already is not its to take.
func TestAttachLeavesPortsAlone(t *testing.T) {
	meshed := func(p *corev1.Pod) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: "istio-proxy"})
	}
	_, err := Attach(pod(withToken("", "token"), meshed), []int32{8080}, options())
	require.ErrorContains(t, err, "through the pods' Istio proxy")
	listed := func(p *corev1.Pod) { p.Annotations = map[string]string{SkipAnnotation: "8000-8080"} }
	_, err = Attach(pod(withToken("", "token"), listed), []int32{8080}, options())
	require.ErrorContains(t, err, "must not be intercepted")
}
