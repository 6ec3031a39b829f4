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
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/wellknown"
	"github.com/detour-dev/detour/pkg/workloads"
)

// tellAfter is how long a wait may be before a person wonders.
const tellAfter = 2 * time.Second

// waiting does something of Helm's that waits until the traffic-manager is ready. When that is in vain it says what the traffic-manager waited
// for: Helm has rolled it back by then.
func (o *options) waiting(ctx context.Context, clients kubernetes.Interface, do func() error) error {
	watching, stop := context.WithTimeout(ctx, o.timeout) // not while it rolls back
	last := make(chan string)
	go func() {
		why := ""
		for tick := time.NewTicker(time.Second); ; {
			select {
			case <-watching.Done():
				tick.Stop()
				last <- why
				return
			case <-tick.C:
				if now := managerTrouble(watching, clients, o.namespace); now != "" {
					why = now
				}
			}
		}
	}()
	err := do()
	stop()
	if why := <-last; errors.Is(err, context.DeadlineExceeded) && why != "" {
		return fmt.Errorf("the traffic-manager was not ready within %s, and all is as before: %s", o.timeout, why)
	}
	return err
}

// managerTrouble says why the traffic-manager is not ready; nothing when it is, or that cannot be told.
func managerTrouble(ctx context.Context, clients kubernetes.Interface, namespace string) string {
	d, err := clients.AppsV1().Deployments(namespace).Get(ctx, wellknown.TrafficManager, metav1.GetOptions{})
	if err != nil {
		return ""
	}
	for _, c := range d.Status.Conditions {
		if c.Type == appsv1.DeploymentReplicaFailure && c.Status == corev1.ConditionTrue {
			return c.Message
		}
	}
	pods, err := clients.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return ""
	}
	if why := workloads.StartFailure(pods.Items); why != "" || d.Status.AvailableReplicas > 0 {
		return why
	}
	return "its pod needs longer, which a longer --timeout gives it"
}

// awaitEnd waits until a namespace is gone that is being deleted. A wait that is not short it tells of.
func awaitEnd(ctx context.Context, clients kubernetes.Interface, namespace string, tell io.Writer) error {
	ending, told, began := false, false, time.Now()
	const interval = 500 * time.Millisecond
	err := wait.PollUntilContextCancel(ctx, interval, true, func(ctx context.Context) (gone bool, err error) {
		n, err := clients.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
		if err != nil {
			return apierrors.IsNotFound(err), client.IgnoreNotFound(err)
		}
		ending = !n.DeletionTimestamp.IsZero()
		if ending && !told && time.Since(began) > tellAfter {
			told = true
			fmt.Fprintf(tell, "waiting until the namespace %s is gone, which is being deleted\n", namespace)
		}
		return !ending, nil
	})
	// A client that limits its rate refuses what there is no time left for, with an error of its own.
	deadline, limited := ctx.Deadline()
	if over := errors.Is(err, context.DeadlineExceeded) || limited && time.Until(deadline) < interval; ending && err != nil && over {
		return fmt.Errorf("it is still being deleted: `kubectl get namespace %s -o yaml` says what it waits for; install again when it is gone", namespace)
	}
	return err
}
