package manager

import (
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Only the holder of the lease writes. A manager that cannot renew it in time ends, and all tunnels with it, so it has time: for an API server
// that is starved or restarts. Nobody waits for it to run out but after the loss of a node: a manager that ends gives it back, and one
// that is killed takes it up again in the next container of its pod.
const (
	leaseDuration = 60 * time.Second
	renewDeadline = 45 * time.Second
	leaseRetry    = time.Second
	leaseTimeout  = 5 * time.Second // of one request
)

// newLease makes the lock of the lease. Its holder is the pod: that has one container at a time, which is started after the last one's end.
func newLease(config *rest.Config, o Options) (resourcelock.Interface, error) {
	config = rest.AddUserAgent(config, "lease") // a copy
	config.Timeout = leaseTimeout
	leases, err := coordinationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make the lease's client: %w", err)
	}
	return &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: o.PodNamespace, Name: ServiceName},
		Client:     leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.PodName},
	}, nil
}
