package inject

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

func TestPlanReplaces(t *testing.T) {
	p := Plan{Ports: []Port{symbolic()}}.Replacing("app").Replacing("log").Replacing("app")
	assert.Equal(t, []string{"app", "log"}, p.Replaced)
	again, err := ParsePlan(p.String())
	require.NoError(t, err)
	assert.Equal(t, p, again)

	one := p.Restoring(func(c string) bool { return c == "log" })
	assert.Equal(t, []string{"log"}, one.Replaced)
	assert.Equal(t, []string{"app", "log"}, p.Replaced, "the old plan is as it was")
	assert.False(t, one.Restoring(func(string) bool { return false }).Empty(), "the agent stays")
	assert.True(t, Plan{Replaced: []string{"app"}}.Restoring(func(string) bool { return false }).Empty())
}

func TestMutateWithoutTheContainer(t *testing.T) {
	p := pod()
	require.ErrorContains(t, Mutate(p, Plan{Ports: []Port{symbolic()}, Replaced: []string{"worker"}}, options()),
		"no container worker")
	assert.Equal(t, pod(), p)
}

func TestPickContainer(t *testing.T) {
	template := func(annotations map[string]string, names ...string) *corev1.PodTemplateSpec {
		t := &corev1.PodTemplateSpec{}
		t.Annotations = annotations
		for i, n := range names {
			t.Spec.Containers = append(t.Spec.Containers, corev1.Container{
				Name:  n,
				Ports: []corev1.ContainerPort{{ContainerPort: 8080 + int32(i)}},
			})
		}
		return t
	}
	kubectls := map[string]string{"kubectl.kubernetes.io/default-container": "app"}
	for name, c := range map[string]struct {
		template *corev1.PodTemplateSpec
		wanted   string
		port     int32
		want     string
		err      string
	}{
		"the only one":   {template: template(nil, "app"), want: "app"},
		"the wanted one": {template: template(kubectls, "app", "log"), wanted: "log", port: 8080, want: "log"},
		"the port's":     {template: template(kubectls, "app", "log"), port: 8081, want: "log"},
		"kubectl's":      {template: template(kubectls, "log", "app"), want: "app"},
		"not clear": {
			template: template(nil, "app", "log"),
			err:      "several containers, app, log: say which",
		},
		"a port of none":        {template: template(nil, "app", "log"), port: 1, err: "say which"},
		"one that is not there": {template: template(nil, "app"), wanted: "web", err: "no container web: it has app"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := PickContainer(c.template, c.wanted, c.port)
			assert.Equal(t, c.want, got)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
		})
	}
	windows := template(nil, "app")
	windows.Spec.OS = &corev1.PodOS{Name: corev1.Windows}
	_, err := PickContainer(windows, "", 0)
	require.ErrorContains(t, err, "Windows")
}
