package webhook

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/detour-dev/detour/pkg/inject"
)

// answer returns a PlanOfRollout that always returns the same.
func answer(text string, err error) PlanOfRollout {
	return func(context.Context, string, *corev1.Pod) (string, error) { return text, err }
}

// A Rollout's annotation takes precedence over one that is left in its pods' template from the time
// when that was a Deployment's.
func TestPlanOfAPod(t *testing.T) {
	own, rollouts := `{"replaced":["own"]}`, `{"replaced":["rollouts"]}`
	for name, c := range map[string]struct{ own, rollouts, want string }{
		"annotation of the pod":         {own: own, want: own},
		"annotation of the Rollout":     {rollouts: rollouts, want: rollouts},
		"annotation of Rollout and pod": {own: own, rollouts: rollouts, want: rollouts},
	} {
		t.Run(name, func(t *testing.T) {
			i := New(inject.Options{}, answer(c.rollouts, nil), slog.New(slog.DiscardHandler))
			pod := &corev1.Pod{}
			if c.own != "" {
				pod.Annotations = map[string]string{inject.Annotation: c.own}
			}
			plan, err := i.plan(t.Context(), "shop", pod)
			require.NoError(t, err)
			assert.Equal(t, c.want, plan.String())
			assert.Equal(t, c.want, pod.Annotations[inject.Annotation])
		})
	}
}

// Whatever goes wrong, the pod is created.
func TestHandleNeverRefusesAPod(t *testing.T) {
	for name, c := range map[string]struct {
		annotation string
		err        error
		patched    bool
	}{
		"a pod of an intercepted workload": {annotation: `{"replaced":["app"]}`, patched: true},
		"a damaged annotation":             {annotation: `{`},
		"an unknown container":             {annotation: `{"replaced":["other"]}`},
		"a Rollout that cannot be read":    {annotation: `{"replaced":["app"]}`, err: errors.New("no answer")},
	} {
		t.Run(name, func(t *testing.T) {
			raw, err := json.Marshal(&corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{inject.Annotation: c.annotation}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "catalog:1"}}},
			})
			require.NoError(t, err)
			i := New(inject.Options{Image: "agent:1"}, answer("", c.err), slog.New(slog.DiscardHandler))
			require.Zero(t, i.LastCall().Unix())
			response := i.Handle(t.Context(), admission.Request{AdmissionRequest: admissionv1.AdmissionRequest{
				Namespace: "shop", Object: runtime.RawExtension{Raw: raw},
			}})
			assert.True(t, response.Allowed)
			assert.Equal(t, c.patched, len(response.Patches) > 0)
			assert.NotZero(t, i.LastCall().Unix())
		})
	}
}
