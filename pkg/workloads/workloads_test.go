package workloads

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/workloads/argo"
)

func rolloutNamed(name string, spec argo.Spec) *argo.Rollout {
	u := argo.New()
	u.SetName(name)
	u.SetNamespace("shop")
	return &argo.Rollout{Unstructured: u, Spec: spec}
}

// What will never roll out is refused at once, with what to do about it.
func TestCannotRoll(t *testing.T) {
	for name, c := range map[string]struct {
		object client.Object
		want   string
	}{
		"deployment":           {&appsv1.Deployment{}, ""},
		"paused deployment":    {&appsv1.Deployment{Spec: appsv1.DeploymentSpec{Paused: true}}, "is paused"},
		"recreated deployment": {&appsv1.Deployment{Spec: appsv1.DeploymentSpec{Strategy: appsv1.DeploymentStrategy{Type: appsv1.RecreateDeploymentStrategyType}}}, ""},
		"stateful set":         {&appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.RollingUpdateStatefulSetStrategyType}}}, ""},
		"stateful set, by hand": {
			&appsv1.StatefulSet{Spec: appsv1.StatefulSetSpec{UpdateStrategy: appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}}}, "OnDelete",
		},
		"daemon set": {&appsv1.DaemonSet{}, ""},
		"daemon set, by hand": {
			&appsv1.DaemonSet{Spec: appsv1.DaemonSetSpec{UpdateStrategy: appsv1.DaemonSetUpdateStrategy{Type: appsv1.OnDeleteDaemonSetStrategyType}}}, "OnDelete",
		},
		"rollout": {&argo.Rollout{Unstructured: argo.New()}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := (&Workload{Object: c.object}).CannotRoll()
			if c.want == "" {
				assert.Empty(t, got)
			}
			assert.Contains(t, got, c.want)
		})
	}
}

func TestWorkloadsIn(t *testing.T) {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "catalog"}}}
	meta := metav1.ObjectMeta{Name: "catalog"}
	var names []string
	for _, list := range []client.ObjectList{
		&appsv1.DeploymentList{Items: []appsv1.Deployment{{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Template: template}}}},
		&appsv1.StatefulSetList{Items: []appsv1.StatefulSet{{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Template: template}}}},
		&appsv1.DaemonSetList{Items: []appsv1.DaemonSet{{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Template: template}}}},
		&corev1.PodList{Items: []corev1.Pod{{}}},
	} {
		for _, w := range In(list) {
			names = append(names, w.Name())
			assert.Equal(t, "app=catalog", w.Selector.String())
			assert.Equal(t, template, *w.Template)
		}
	}
	assert.Equal(t, []string{"deployment/catalog", "statefulset/catalog", "daemonset/catalog"}, names)
}

// A Deployment that a Rollout refers to is only its template, unless it has pods of its own.
func TestAddRollouts(t *testing.T) {
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web"}}},
	}
	selector := &metav1.LabelSelector{MatchLabels: template.Labels}
	deployments := func(replicas int32) []*Workload {
		return In(&appsv1.DeploymentList{Items: []appsv1.Deployment{
			{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"}, Spec: appsv1.DeploymentSpec{Template: template, Replicas: &replicas}},
			{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "elsewhere"}, Spec: appsv1.DeploymentSpec{Template: template}},
		}})
	}
	ref := func(kind, name string) *argo.WorkloadRef { return &argo.WorkloadRef{Kind: kind, Name: name} }
	for name, c := range map[string]struct {
		replicas   int32
		spec       argo.Spec
		templateOf string // what the Deployment is then
		labels     map[string]string
		unknown    string
	}{
		"with a template":                      {0, argo.Spec{Template: template}, "", template.Labels, ""},
		"with a deployment's":                  {0, argo.Spec{WorkloadRef: ref("Deployment", "web")}, "shop", template.Labels, ""},
		"with that of a deployment with pods":  {2, argo.Spec{WorkloadRef: ref("Deployment", "web")}, "", template.Labels, ""},
		"with none":                            {0, argo.Spec{WorkloadRef: ref("Deployment", "gone")}, "", nil, "has its pods' template from Deployment gone"},
		"with a replica set's, and a selector": {0, argo.Spec{WorkloadRef: ref("ReplicaSet", "web"), Selector: selector}, "", template.Labels, "has its pods' template from ReplicaSet web"},
	} {
		t.Run(name, func(t *testing.T) {
			all := AddRollouts(deployments(c.replicas), []*argo.Rollout{rolloutNamed("shop", c.spec)})
			assert.Len(t, all, 3)
			assert.Equal(t, c.templateOf, all[0].TemplateOf)
			assert.Empty(t, all[1].TemplateOf)
			made := all[2]
			assert.Equal(t, "rollout/shop", made.Name())
			assert.Equal(t, c.labels, made.Template.Labels)
			assert.Contains(t, made.UnknownTemplate(), c.unknown)
			assert.Equal(t, c.unknown == "", made.UnknownTemplate() == "")
		})
	}
}

// A pod whose end is awaited counts, and not one of a node that is lost: that pod never ends, and nobody is to wait for it.
func TestRunning(t *testing.T) {
	pod := func(phase corev1.PodPhase, ends time.Duration) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "catalog"}}, Status: corev1.PodStatus{Phase: phase}}
		if ends != 0 {
			p.DeletionTimestamp = &metav1.Time{Time: time.Now().Add(ends)}
		}
		return p
	}
	w := &Workload{Kind: "Deployment", Selector: labels.SelectorFromSet(labels.Set{"app": "catalog"})}
	for name, c := range map[string]struct {
		pod     corev1.Pod
		running bool
	}{
		"serving":                        {pod(corev1.PodRunning, 0), true},
		"not on a node yet":              {pod(corev1.PodPending, 0), true},
		"ending, with an hour for it":    {pod(corev1.PodRunning, time.Hour), true},
		"ending, a moment late":          {pod(corev1.PodRunning, -10*time.Second), true},
		"ending, on a node that is lost": {pod(corev1.PodRunning, -5*time.Minute), false},
		"evicted":                        {pod(corev1.PodFailed, 0), false},
		"of another":                     {corev1.Pod{}, false},
	} {
		t.Run(name, func(t *testing.T) { assert.Equal(t, c.running, len(w.Running([]corev1.Pod{c.pod})) == 1) })
	}
}
