package workloads

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// A pod that is about to end still counts. A pod of a lost node does not: it never ends, and nobody
// should wait for it.
func TestRunning(t *testing.T) {
	pod := func(phase corev1.PodPhase, ends time.Duration) corev1.Pod {
		p := corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "catalog"}},
			Status:     corev1.PodStatus{Phase: phase},
		}
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

func TestPodReady(t *testing.T) {
	ready := corev1.PodStatus{Conditions: []corev1.PodCondition{
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
		{Type: corev1.PodReady, Status: corev1.ConditionTrue},
	}}
	now := metav1.Now()
	for _, c := range []struct {
		name string
		pod  corev1.Pod
		want bool
	}{
		{name: "ready", pod: corev1.Pod{Status: ready}, want: true},
		{
			name: "ready but about to end",
			pod:  corev1.Pod{ObjectMeta: metav1.ObjectMeta{DeletionTimestamp: &now}, Status: ready},
		},
		{
			name: "not ready yet",
			pod: corev1.Pod{
				Status: corev1.PodStatus{
					Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionFalse}},
				},
			},
		},
		{name: "not started", pod: corev1.Pod{}},
	} {
		t.Run(c.name, func(t *testing.T) { assert.Equal(t, c.want, PodReady(&c.pod)) })
	}
}

func TestNewestPodPrefersReadyPods(t *testing.T) {
	pod := func(name string, created int64, ready bool, change func(*corev1.Pod)) corev1.Pod {
		p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, CreationTimestamp: metav1.Unix(created, 0)}}
		if ready {
			p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
		}
		if change != nil {
			change(&p)
		}
		return p
	}
	deleted := func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{Time: time.Now()} }
	failed := func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed }
	for _, c := range []struct {
		name string
		pods []corev1.Pod
		want string
	}{
		{name: "no pods"},
		{name: "the newest ready pod", pods: []corev1.Pod{pod("a", 1, true, nil), pod("b", 2, true, nil)}, want: "b"},
		{
			name: "an old ready pod before a new one that is not ready",
			pods: []corev1.Pod{pod("a", 1, true, nil), pod("b", 2, false, nil)},
			want: "a",
		},
		{
			name: "the newest pod when none is ready",
			pods: []corev1.Pod{pod("b", 2, false, nil), pod("a", 1, false, nil)},
			want: "b",
		},
		{
			name: "no pod that ends",
			pods: []corev1.Pod{pod("a", 1, false, nil), pod("b", 2, true, deleted), pod("c", 3, true, failed)},
			want: "a",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := NewestPod(c.pods)
			if c.want == "" {
				assert.Nil(t, got)
				return
			}
			assert.Equal(t, c.want, got.Name)
		})
	}
}
