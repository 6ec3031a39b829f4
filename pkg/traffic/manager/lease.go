package manager

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationclient "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/wellknown"
)

// Only the holder of the lease writes. A manager that cannot renew it in time ends, and all tunnels with it, so it has time: for an API server
// that is starved or restarts. Hardly anybody waits for it to run out: a manager that ends gives it back, one that is killed takes it up
// again in the next container of its pod, and that of a pod that no longer exists is free.
const (
	leaseDuration = 60 * time.Second
	renewDeadline = 45 * time.Second
	leaseRetry    = time.Second
	leaseTimeout  = 5 * time.Second // of one request

	// podlessAfter is how long a pod has to be gone before it cannot write any more, wherever it may still run: its token is bound to it,
	// and API servers remember for 10 s that a token was good.
	podlessAfter = 15 * time.Second
)

// newLease makes the lock of the lease. Its holder is the pod: that has one container at a time, which is started after the last one's end.
func newLease(config *rest.Config, pods client.Reader, o Options) (resourcelock.Interface, error) {
	config = rest.AddUserAgent(config, "lease") // a copy
	config.Timeout = leaseTimeout
	leases, err := coordinationclient.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make the lease's client: %w", err)
	}
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: o.PodNamespace, Name: wellknown.TrafficManager},
		Client:     leases,
		LockConfig: resourcelock.ResourceLockConfig{Identity: o.PodName},
	}
	return &podLock{Interface: lock, log: o.Log, exists: func(ctx context.Context, name string) (bool, error) {
		err := pods.Get(ctx, client.ObjectKey{Namespace: o.PodNamespace, Name: name}, &corev1.Pod{})
		return err == nil, client.IgnoreNotFound(err)
	}}, nil
}

// podLock is a lock that is free also when its holder's pod was deleted without the time to give it back.
type podLock struct {
	resourcelock.Interface
	log    *slog.Logger
	exists func(ctx context.Context, pod string) (bool, error)

	gone  string // a holder without a pod
	since time.Time
}

// Get implements resourcelock.Interface.
func (l *podLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err != nil || !l.podless(ctx, record.HolderIdentity) {
		return record, raw, err
	}
	l.log.Info("the lease's holder has no pod any more: taking it", "holder", record.HolderIdentity)
	free := *record
	free.HolderIdentity = ""
	if raw, err = json.Marshal(free); err != nil {
		return nil, nil, fmt.Errorf("encode the lease: %w", err)
	}
	return &free, raw, nil
}

// podless says whether the holder's pod has been gone for long enough.
func (l *podLock) podless(ctx context.Context, holder string) bool {
	if holder == "" || holder == l.Identity() {
		l.gone = ""
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	exists, err := l.exists(ctx, holder)
	switch {
	case err != nil || exists:
		l.gone = ""
		return false
	case l.gone != holder:
		l.gone, l.since = holder, time.Now()
	}
	return time.Since(l.since) >= podlessAfter
}
