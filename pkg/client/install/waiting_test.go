package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/detour-dev/detour/pkg/wellknown"
)

func waitingPod(reason, message string) corev1.Pod {
	state := corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: Namespace,
			Name:      "traffic-manager-1",
			Labels:    map[string]string{"app": "traffic-manager"},
		},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "traffic-manager", State: state}}},
	}
}

func TestWhyTheTrafficManagerIsNotReady(t *testing.T) {
	quota := appsv1.DeploymentCondition{
		Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Message: `pods "traffic-manager-" is ` +
			`forbidden: exceeded quota`,
	}
	for name, c := range map[string]struct {
		status appsv1.DeploymentStatus
		pods   []corev1.Pod
		want   string
	}{
		"it is ready": {status: appsv1.DeploymentStatus{AvailableReplicas: 1}},
		"no pod may be created": {
			status: appsv1.DeploymentStatus{Conditions: []appsv1.DeploymentCondition{quota}},
			want:   `pods "traffic-manager-" is forbidden: exceeded quota`,
		},
		"the image does not exist": {
			pods: []corev1.Pod{waitingPod("ErrImagePull", "not found")},
			want: "container traffic-manager of pod traffic-manager-1 waits: ErrImagePull not found",
		},
		"it is only slow": {
			pods: []corev1.Pod{waitingPod("ContainerCreating", "")},
			want: "its pod needs more time: use a longer --timeout",
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, c.want, deploymentProblem(&appsv1.Deployment{Status: c.status}, c.pods))
		})
	}
}

func managerDeployment() *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: Namespace, Name: wellknown.TrafficManager},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "traffic-manager"}},
		},
	}
}

// Helm only says that the time is over.
func TestAnInstallThatTimesOutSaysWhy(t *testing.T) {
	pod := waitingPod("ErrImagePull", "not found")
	for name, c := range map[string]struct {
		helm error
		want string
	}{
		"it becomes ready": {},
		"Helm fails at once": {
			helm: errors.New("the release is broken"),
			want: "the release is broken",
		},
		"the time is over": {
			helm: fmt.Errorf("wait for the deployment: %w", context.DeadlineExceeded),
			want: "the traffic-manager was not ready within 2s, and the cluster is as it was before: " +
				"container traffic-manager of pod traffic-manager-1 waits: ErrImagePull not found",
		},
	} {
		t.Run(name, func(t *testing.T) {
			o := fakeOptions(t, managerDeployment(), &pod)
			synctest.Test(t, func(*testing.T) {
				err := o.whileWatching(context.Background(), func() error {
					time.Sleep(problemPollInterval + time.Millisecond)
					return c.helm
				})
				if c.want == "" {
					require.NoError(t, err)
				} else {
					require.EqualError(t, err, c.want)
				}
			})
		})
	}
}

func TestInstallWaitsForANamespaceThatIsBeingDeleted(t *testing.T) {
	ending := namespaceNamed(Namespace, nil)
	now := metav1.Now()
	ending.DeletionTimestamp, ending.Finalizers = &now, []string{"kubernetes"}
	const notice = "waiting until the namespace detour-system is deleted\n"

	for name, c := range map[string]struct {
		cluster *cluster
		gone    time.Duration // when the namespace is gone; 0 means never
		notice  string
		want    string
	}{
		"there is none":         {cluster: fakeCluster(t)},
		"it is not deleted":     {cluster: fakeCluster(t, namespaceNamed(Namespace, nil))},
		"it is gone soon":       {cluster: fakeCluster(t, ending.DeepCopy()), gone: time.Second},
		"it is gone after long": {cluster: fakeCluster(t, ending.DeepCopy()), gone: 10 * time.Second, notice: notice},
		"it stays": {
			cluster: fakeCluster(t, ending.DeepCopy()),
			notice:  notice,
			want: "it is still being deleted: `kubectl get namespace detour-system -o yaml` shows what it waits for; " +
				"install again when it is gone",
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if c.gone > 0 {
					time.AfterFunc(c.gone, func() {
						n := ending.DeepCopy()
						n.Finalizers = nil // the fake cluster deletes it then
						_ = c.cluster.Update(context.Background(), n)
					})
				}
				ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
				defer cancel()
				var notices bytes.Buffer
				err := awaitNamespaceEnd(ctx, c.cluster, Namespace, &notices)
				if c.want == "" {
					require.NoError(t, err)
				} else {
					require.EqualError(t, err, c.want)
				}
				require.Equal(t, c.notice, notices.String())
			})
		})
	}
}
