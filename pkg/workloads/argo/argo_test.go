package argo

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A template that is none is left out, and in nobody's way.
func TestAll(t *testing.T) {
	list := NewList()
	require.NoError(t, list.UnmarshalJSON([]byte(`{"apiVersion":"argoproj.io/v1alpha1","kind":"RolloutList","items":[
		{"apiVersion":"argoproj.io/v1alpha1","kind":"Rollout","metadata":{"name":"odd"},
			"spec":{"template":{"spec":{"containers":"none"}}}},
		{"apiVersion":"argoproj.io/v1alpha1","kind":"Rollout","metadata":{"name":"web","generation":7},
			"spec":{"restartAt":"2026-01-02T03:04:05Z","strategy":{"blueGreen":{"activeService":"web"}},
				"template":{"metadata":{"labels":{"app":"web"}},
					"spec":{"containers":[{"name":"web","ports":[{"containerPort":8080}]}]}}},
			"status":{"availableReplicas":1,"observedGeneration":"7","message":"all is well"}}]}`)))
	all := FromList(list)
	require.Len(t, all, 1)
	r := all[0]
	assert.Equal(t, "web", r.GetName())
	assert.Equal(t, map[string]string{"app": "web"}, r.Spec.Template.Labels)
	assert.Equal(t, int32(8080), r.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort)
	assert.Equal(t, Status{AvailableReplicas: 1, ObservedGeneration: "7", Message: "all is well"}, r.Status)
	assert.Equal(t, &BlueGreen{ActiveService: "web"}, r.Spec.Strategy.BlueGreen)
	assert.Equal(t, int32(1), r.Wants())
	assert.True(t, r.Observed())
	assert.True(t, r.Restarting())
	r.Status.RestartedAt = r.Spec.RestartAt.DeepCopy()
	assert.False(t, r.Restarting())
	r.SetGeneration(8)
	assert.False(t, r.Observed())
}

func TestSelects(t *testing.T) {
	template := &corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web", "tier": "front"}},
	}
	for name, c := range map[string]struct {
		selector map[string]string
		want     bool
	}{
		"its own":        {map[string]string{"app": "web"}, true},
		"as Argo has it": {map[string]string{"app": "web", HashLabel: "76d9f8c7"}, true},
		"another's":      {map[string]string{"app": "db", HashLabel: "76d9f8c7"}, false},
		"none":           {nil, false},
		"the hash alone": {map[string]string{HashLabel: "76d9f8c7"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, c.want, Selects(c.selector, template))
		})
	}
}

func TestOther(t *testing.T) {
	r := &Rollout{Spec: Spec{Strategy: Strategy{BlueGreen: &BlueGreen{ActiveService: "web", PreviewService: "next"}}}}
	assert.Equal(t, "next", r.Other("web"))
	assert.Equal(t, "web", r.Other("next"))
	assert.Empty(t, r.Other("db"))
	assert.Empty(t, (&Rollout{}).Other("web"))
}

func TestOf(t *testing.T) {
	for name, c := range map[string]struct{ kind, owner, hash, want string }{
		"a rollout's":      {"ReplicaSet", "web-front-76d9f8c7", "76d9f8c7", "web-front"},
		"a deployment's":   {"ReplicaSet", "web-76d9f8c7", "", ""},
		"an experiment's":  {"ReplicaSet", "web-76d9f8c7-2-canary", "76d9f8c7", ""},
		"a stateful set's": {"StatefulSet", "web-76d9f8c7", "76d9f8c7", ""},
		"nobody's":         {"", "", "76d9f8c7", ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}}}
			if c.hash != "" {
				pod.Labels[HashLabel] = c.hash
			}
			if c.kind != "" {
				yes := true
				pod.OwnerReferences = []metav1.OwnerReference{{Kind: c.kind, Name: c.owner, Controller: &yes}}
			}
			assert.Equal(t, c.want, OwnerOf(pod))
		})
	}
}

// All pods that may not know the annotation are older than the restart, and the template stays.
func TestAnnotateAndRestart(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.FixedZone("east", 3600))
	for name, c := range map[string]struct {
		version string
		value   any
		want    string
	}{
		"set": {
			version: "12",
			value:   "{}",
			want: `{"metadata":{"resourceVersion":"12","annotations":{"detour.dev/agent":"{}"}},` +
				`"spec":{"restartAt":"2026-01-02T02:04:06Z"}}`,
		},
		"remove": {
			want: `{"metadata":{"annotations":{"detour.dev/agent":null}},"spec":{"restartAt":"2026-01-02T02:04:06Z"}}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			patch, err := AnnotateAndRestart(c.version, "detour.dev/agent", c.value, now)
			require.NoError(t, err)
			require.True(t, json.Valid(patch))
			assert.JSONEq(t, c.want, string(patch))
		})
	}
}
