package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/wellknown"
	"github.com/detour-dev/detour/pkg/workloads"
)

const (
	// noticeDelay is how long a wait may take before the user is told what it waits for.
	noticeDelay = 2 * time.Second
	// namespacePollInterval is how often a namespace that ends is looked at.
	namespacePollInterval = 500 * time.Millisecond
	// problemPollInterval is how often whileWatching looks why the traffic-manager is not ready.
	problemPollInterval = time.Second
)

// whileWatching runs do, in which Helm waits until the traffic-manager is ready. If the time runs
// out, the error says why the traffic-manager was not ready: Helm has rolled it back by then.
func (o *commonOptions) whileWatching(ctx context.Context, do func() error) error {
	watching, stop := context.WithTimeout(ctx, o.timeout) // not during the rollback
	last := make(chan string)
	go func() { // the receive from last waits for it
		problem := ""
		for tick := time.NewTicker(problemPollInterval); ; {
			select {
			case <-watching.Done():
				tick.Stop()
				last <- problem
				return
			case <-tick.C:
				if now := managerProblem(watching, o.cluster, o.namespace); now != "" {
					problem = now
				}
			}
		}
	}()
	err := do()
	stop()
	if problem := <-last; errors.Is(err, context.DeadlineExceeded) && problem != "" {
		return fmt.Errorf("the traffic-manager was not ready within %s, and the cluster is as it was before: %s",
			o.timeout, problem)
	}
	return err
}

// managerProblem returns why the traffic-manager is not ready. It returns nothing if it is ready,
// or if the reason is unknown.
func managerProblem(ctx context.Context, c client.Reader, namespace string) string {
	var d appsv1.Deployment
	if err := c.Get(ctx, client.ObjectKey{Namespace: namespace, Name: wellknown.TrafficManager}, &d); err != nil {
		return ""
	}
	selector, err := metav1.LabelSelectorAsSelector(d.Spec.Selector)
	if err != nil {
		return ""
	}
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(namespace),
		client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return ""
	}
	return deploymentProblem(&d, pods.Items)
}

// deploymentProblem returns why a deployment with these pods is not ready, or nothing if it is.
func deploymentProblem(d *appsv1.Deployment, pods []corev1.Pod) string {
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return c.Message
		}
	}
	if failure := workloads.StartFailure(pods); failure != "" || d.Status.AvailableReplicas > 0 {
		return failure
	}
	return "its pod needs more time: use a longer --timeout"
}

// awaitNamespaceEnd waits until a namespace that is being deleted is gone. It tells the user about
// a wait that is not short.
func awaitNamespaceEnd(ctx context.Context, c client.Reader, namespace string, notices io.Writer) error {
	ending, noticed, began := false, false, time.Now()
	isGone := func(ctx context.Context) (bool, error) {
		var n corev1.Namespace
		if err := c.Get(ctx, client.ObjectKey{Name: namespace}, &n); err != nil {
			return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
		}
		ending = !n.DeletionTimestamp.IsZero()
		if ending && !noticed && time.Since(began) > noticeDelay {
			noticed = true
			fmt.Fprintf(notices, "waiting until the namespace %s is deleted\n", namespace)
		}
		return !ending, nil
	}
	err := wait.PollUntilContextCancel(ctx, namespacePollInterval, true, isGone)
	// A client with a rate limit fails with an error of its own if the deadline leaves too little
	// time.
	deadline, limited := ctx.Deadline()
	timedOut := errors.Is(err, context.DeadlineExceeded) || limited && time.Until(deadline) < namespacePollInterval
	if ending && err != nil && timedOut {
		return fmt.Errorf("it is still being deleted: `kubectl get namespace %s -o yaml` shows what it waits for; "+
			"install again when it is gone", namespace)
	}
	return err
}
