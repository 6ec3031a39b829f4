package install

import (
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

func withAgent() metav1.ObjectMeta {
	return metav1.ObjectMeta{Annotations: map[string]string{inject.Annotation: "{}"}}
}

func templateWithAgent() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: withAgent()}
}

func rolloutWith(annotations map[string]string, spec argo.Spec) *argo.Rollout {
	u := argo.New()
	u.SetName("catalog")
	u.SetAnnotations(annotations)
	return &argo.Rollout{Unstructured: u, Spec: spec}
}

func TestWorkloadsWithAgent(t *testing.T) {
	deployment := func(template corev1.PodTemplateSpec) []*workloads.Workload {
		d := appsv1.Deployment{
			ObjectMeta: metav1.ObjectMeta{Name: "catalog"},
			Spec:       appsv1.DeploymentSpec{Template: template},
		}
		return workloads.FromList(&appsv1.DeploymentList{Items: []appsv1.Deployment{d}})
	}
	rollout := func(annotations map[string]string, spec argo.Spec) []*workloads.Workload {
		return workloads.AddRollouts(nil, []*argo.Rollout{rolloutWith(annotations, spec)})
	}
	for name, c := range map[string]struct {
		all  []*workloads.Workload
		want string
	}{
		"a deployment with the agent": {all: deployment(templateWithAgent()), want: "deployment/catalog"},
		"a deployment without it":     {all: deployment(corev1.PodTemplateSpec{})},
		"a rollout with the agent": {
			all:  rollout(withAgent().Annotations, argo.Spec{}),
			want: "rollout/catalog",
		},
		"a rollout without it":                  {all: rollout(nil, argo.Spec{})},
		"a rollout whose template is annotated": {all: rollout(nil, argo.Spec{Template: templateWithAgent()})},
		"a namespace without any workload":      {},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, workloads.Names(workloadsWithAgent(c.all)))
		})
	}
}

func TestRollBackRemovesOnlyTheAnnotation(t *testing.T) {
	template := templateWithAgent()
	template.Annotations["team"] = "shop"
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "db"},
		Spec:       appsv1.StatefulSetSpec{Template: template},
	}
	o := &uninstallOptions{commonOptions: fakeOptions(t, set)}
	all, err := workloads.List(t.Context(), o.cluster, "", nil)
	require.NoError(t, err)
	require.Len(t, all, 1)
	require.NoError(t, o.rollBack(t.Context(), all[0]))
	require.True(t, o.cluster.exists(t, set))
	require.Equal(t, map[string]string{"team": "shop"}, set.Spec.Template.Annotations)
}

// Uninstall does not wait for pods that have ended, such as evicted ones: they keep the annotation.
func TestPodsWithAgent(t *testing.T) {
	pod := func(name string, phase corev1.PodPhase, annotation string) corev1.Pod {
		return corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{
				Namespace:   "shop",
				Name:        name,
				Annotations: map[string]string{inject.Annotation: annotation},
			},
			Status: corev1.PodStatus{Phase: phase},
		}
	}
	require.Equal(t, []string{"shop/serving"}, podsWithAgent([]corev1.Pod{
		pod("serving", corev1.PodRunning, "{}"),
		pod("evicted", corev1.PodFailed, "{}"),
		pod("done", corev1.PodSucceeded, "{}"),
		pod("other", corev1.PodRunning, ""),
	}))
}

func TestUninstallRemovesOnlyTheHistoryWithTheAgent(t *testing.T) {
	replicaSet := func(name string, replicas int32, template corev1.PodTemplateSpec) *appsv1.ReplicaSet {
		return &appsv1.ReplicaSet{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec:       appsv1.ReplicaSetSpec{Template: template},
			Status:     appsv1.ReplicaSetStatus{Replicas: replicas},
		}
	}
	revision := func(name, raw string) *appsv1.ControllerRevision {
		return &appsv1.ControllerRevision{
			ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Data:       runtime.RawExtension{Raw: []byte(raw)},
		}
	}
	old, running := replicaSet("old", 0, templateWithAgent()), replicaSet("running", 1, templateWithAgent())
	plain := replicaSet("plain", 0, corev1.PodTemplateSpec{})
	oldRevision, plainRevision := revision("old", `{"`+inject.Annotation+`":"{}"}`), revision("plain", `{}`)
	o := &uninstallOptions{commonOptions: fakeOptions(t, old, running, plain, oldRevision, plainRevision)}
	require.NoError(t, o.removeHistory(t.Context()))
	require.False(t, o.cluster.exists(t, old))
	require.True(t, o.cluster.exists(t, running), "it still has pods")
	require.True(t, o.cluster.exists(t, plain), "it never had the agent")
	require.False(t, o.cluster.exists(t, oldRevision))
	require.True(t, o.cluster.exists(t, plainRevision))
}
