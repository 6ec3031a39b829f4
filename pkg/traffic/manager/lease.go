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

// Only the manager that holds the lease writes. A manager that cannot renew the lease in time ends,
// and all tunnels end with it, so it gets enough time for an API server that is starved or
// restarts.
//
// Hardly anybody has to wait until the lease runs out. A manager that ends gives it back. A manager
// that is killed takes it up again in the next container of its pod. The lease of a pod that no
// longer exists is free: see podLock.
const (
	leaseDuration = 60 * time.Second
	renewDeadline = 45 * time.Second
	leaseRetry    = time.Second
	leaseTimeout  = 5 * time.Second // of one request

	// podGoneAfter is how long a pod has to be deleted before it certainly cannot write any more,
	// even if its process still runs on a node that is lost: its token is bound to the pod, and API
	// servers cache for 10 s that a token is valid.
	podGoneAfter = 15 * time.Second
)

// newLease returns the lock for the lease. The pod holds it, not the process: a pod has one
// container at a time, and its next container starts after the end of the last one.
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

// podLock is a lock that is also free if its holder's pod was deleted without the time to give it
// back. The leader election calls it from one goroutine.
type podLock struct {
	resourcelock.Interface
	log    *slog.Logger
	exists func(ctx context.Context, pod string) (bool, error)

	gone  string    // the holder, if its pod does not exist
	since time.Time // when that was first seen
}

// Get implements resourcelock.Interface.
func (l *podLock) Get(ctx context.Context) (*resourcelock.LeaderElectionRecord, []byte, error) {
	record, raw, err := l.Interface.Get(ctx)
	if err != nil || !l.podGone(ctx, record.HolderIdentity) {
		return record, raw, err
	}
	l.log.Info("taking the lease over: the pod that holds it no longer exists", "pod", record.HolderIdentity)
	free := *record
	free.HolderIdentity = ""
	if raw, err = json.Marshal(free); err != nil {
		return nil, nil, fmt.Errorf("encode the lease: %w", err)
	}
	return &free, raw, nil
}

// podGone reports whether the holder's pod has been deleted for long enough.
func (l *podLock) podGone(ctx context.Context, holder string) bool {
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
	return time.Since(l.since) >= podGoneAfter
}
