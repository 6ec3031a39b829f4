package workloads

import (
	"testing"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/workloads/argo"
)

func rolloutNamed(name string, spec argo.Spec) *argo.Rollout {
	u := argo.New()
	u.SetName(name)
	u.SetNamespace("shop")
	return &argo.Rollout{Unstructured: u, Spec: spec}
}

func TestFromList(t *testing.T) {
	template := corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "catalog"}}}
	meta := metav1.ObjectMeta{Name: "catalog"}
	var names []string
	for _, list := range []client.ObjectList{
		&appsv1.DeploymentList{
			Items: []appsv1.Deployment{{ObjectMeta: meta, Spec: appsv1.DeploymentSpec{Template: template}}},
		},
		&appsv1.StatefulSetList{
			Items: []appsv1.StatefulSet{{ObjectMeta: meta, Spec: appsv1.StatefulSetSpec{Template: template}}},
		},
		&appsv1.DaemonSetList{
			Items: []appsv1.DaemonSet{{ObjectMeta: meta, Spec: appsv1.DaemonSetSpec{Template: template}}},
		},
		&corev1.PodList{Items: []corev1.Pod{{}}},
	} {
		for _, w := range FromList(list) {
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
		return FromList(&appsv1.DeploymentList{Items: []appsv1.Deployment{
			{
				ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop"},
				Spec:       appsv1.DeploymentSpec{Template: template, Replicas: &replicas},
			},
			{
				ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "elsewhere"},
				Spec:       appsv1.DeploymentSpec{Template: template},
			},
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
		"with a template": {0, argo.Spec{Template: template}, "", template.Labels, ""},
		"with a deployment's": {
			spec:       argo.Spec{WorkloadRef: ref("Deployment", "web")},
			templateOf: "shop",
			labels:     template.Labels,
		},
		"with that of a deployment with pods": {
			replicas: 2,
			spec:     argo.Spec{WorkloadRef: ref("Deployment", "web")},
			labels:   template.Labels,
		},
		"with none": {
			spec:    argo.Spec{WorkloadRef: ref("Deployment", "gone")},
			unknown: "takes its pod template from Deployment gone",
		},
		"with a replica set's, and a selector": {
			spec:    argo.Spec{WorkloadRef: ref("ReplicaSet", "web"), Selector: selector},
			labels:  template.Labels,
			unknown: "takes its pod template from ReplicaSet web",
		},
	} {
		t.Run(name, func(t *testing.T) {
			all := AddRollouts(deployments(c.replicas), []*argo.Rollout{rolloutNamed("shop", c.spec)})
			assert.Len(t, all, 3)
			assert.Equal(t, c.templateOf, all[0].TemplateOf)
			assert.Empty(t, all[1].TemplateOf)
			made := all[2]
			assert.Equal(t, "rollout/shop", made.Name())
			assert.Equal(t, c.labels, made.Template.Labels)
			assert.Contains(t, made.TemplateObstacle(), c.unknown)
			assert.Equal(t, c.unknown == "", made.TemplateObstacle() == "")
		})
	}
}
