package session

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/traffic/manager/retry"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// Tunnel is what the reconciler needs of the laptops' tunnels. *vif.Hub implements it. All methods
// may be called concurrently.
type Tunnel interface {
	// LastReceived returns when the last authenticated packet of a peer arrived, and the zero time
	// if none has.
	LastReceived(wgkey.Key) time.Time
	// Connected reports whether a packet of a peer arrived within the given time.
	Connected(wgkey.Key, time.Duration) bool
	// SetPeers replaces all peers.
	SetPeers([]vif.Peer) error
	// ResetRelayed ends the connections that the manager has to a peer with a reset.
	ResetRelayed(wgkey.Key)
}

// Config is what a Reconciler needs from the traffic-manager.
type Config struct {
	// Client reads through the cache.
	Client client.Client
	// Reader reads from the API server without a cache.
	Reader client.Reader
	// Tunnel belongs to the caller.
	Tunnel Tunnel
	// Pool has the laptops' addresses.
	Pool *Pool
	// PublicKey is the manager's WireGuard key.
	PublicKey wgkey.Key
	// PodName, PodNamespace and NodeName say where the manager runs.
	PodName, PodNamespace, NodeName string
	// ClusterDomain is the cluster's DNS domain.
	ClusterDomain string
	// UDP says how laptops reach the manager's UDP port: one of UDPNodePort, UDPLoadBalancer and
	// UDPHostPort, or empty if they cannot.
	UDP string
	// UDPHostPort is the port of the node under UDPHostPort.
	UDPHostPort uint16
	// StaleAfter is how long a connected laptop may be silent.
	StaleAfter time.Duration
	// TTL is how long a laptop may be silent before its session is deleted.
	TTL time.Duration
	Log *slog.Logger
}

// Reconciler keeps Sessions and the tunnel's peers up to date. Make one with New.
type Reconciler struct {
	client.Client
	config  Config
	started time.Time // no packet can have arrived before
	changed chan event.GenericEvent
	// networks are those that the sessions were last told to route.
	networks atomic.Pointer[[]netip.Prefix]

	// allocation is held while a session gets addresses.
	allocation sync.Mutex

	// mu guards the fields below.
	mu        sync.Mutex
	connected map[client.ObjectKey]bool
}

// changedQueue is how many changes of connections wait for the controller. One that does not fit is
// found again at the next poll.
const changedQueue = 64

// New returns a Reconciler. It does nothing before Setup.
func New(c Config) *Reconciler {
	c.Log = c.Log.With("component", "sessions")
	return &Reconciler{
		Client: c.Client, config: c, started: time.Now(),
		changed: make(chan event.GenericEvent, changedQueue), connected: map[client.ObjectKey]bool{},
	}
}

// Setup adds the controller to mgr. It asks the API server and waits until that answers.
func (r *Reconciler) Setup(ctx context.Context, mgr ctrl.Manager) error {
	all := handler.EnqueueRequestsFromMapFunc(r.all)
	sessions := ctrl.NewControllerManagedBy(mgr).Named("session").For(&detour.Session{}).
		WatchesRawSource(source.Channel(r.changed, &handler.EnqueueRequestForObject{})).
		Watches(&corev1.Node{}, all, builder.WithPredicates(nodeNetworkChanged())).
		Watches(&corev1.Pod{}, all, builder.WithPredicates(r.unknownNetwork(podAddresses))).
		Watches(&corev1.Service{}, all, builder.WithPredicates(r.unknownNetwork(clusterIPs)))
	declared := false
	err := retry.Do(ctx, r.config.Log, func(context.Context) (err error) {
		declared, err = hasServiceCIDRs(mgr.GetRESTMapper())
		return err
	})
	if err != nil {
		return err
	}
	if declared {
		sessions = sessions.Watches(&networkingv1.ServiceCIDR{}, all,
			builder.WithPredicates(predicate.GenerationChangedPredicate{}))
	}
	if err := sessions.Complete(r); err != nil {
		return fmt.Errorf("set up the session controller: %w", err)
	}
	return nil
}

// hasServiceCIDRs reports whether the cluster has the ServiceCIDR API, which came with Kubernetes
// 1.33.
func hasServiceCIDRs(mapper meta.RESTMapper) (bool, error) {
	kind := networkingv1.SchemeGroupVersion.WithKind("ServiceCIDR")
	_, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
	if meta.IsNoMatchError(err) {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("ask for the API of service networks: %w", err)
	}
	return true, nil
}

// all returns a request for every session, for an event that concerns each of them.
func (r *Reconciler) all(ctx context.Context, _ client.Object) (requests []reconcile.Request) {
	var list detour.SessionList
	if err := r.List(ctx, &list); err != nil {
		r.config.Log.Warn("listing the sessions failed", "err", err)
	}
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return requests
}

// Reconcile brings a session's status up to date.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var s detour.Session
	if err := r.Get(ctx, req.NamespacedName, &s); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !s.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	f, err := r.observe(ctx, &s)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := decide(f, time.Now())
	if d.assign {
		if f.keyOwner, err = r.assign(ctx, &s, f.key); err != nil {
			return ctrl.Result{}, err
		}
		f.assigned = true
		d = decide(f, time.Now())
	}
	return r.apply(ctx, &s, d)
}

// apply does what was decided for a session.
func (r *Reconciler) apply(ctx context.Context, s *detour.Session, d decision) (ctrl.Result, error) {
	if d.delete {
		r.config.Log.Info("deleting a session whose laptop is gone",
			"session", client.ObjectKeyFromObject(s), "duration", d.silent.Round(time.Second))
		return ctrl.Result{}, client.IgnoreNotFound(r.Delete(ctx, s))
	}
	return ctrl.Result{RequeueAfter: d.requeue}, r.update(ctx, s, d.status)
}

// update writes a session's status if it has changed.
func (r *Reconciler) update(ctx context.Context, s *detour.Session, status detour.SessionStatus) error {
	if equality.Semantic.DeepEqual(s.Status, status) {
		return nil
	}
	s.Status = status
	return client.IgnoreNotFound(r.Status().Update(ctx, s))
}

// assign gives a session its addresses, unless another session owns its key: then it returns that
// one. It lists the sessions without the cache, so that two of them never get the same address.
func (r *Reconciler) assign(ctx context.Context, s *detour.Session, key wgkey.Key) (owner *detour.Session, err error) {
	r.allocation.Lock()
	defer r.allocation.Unlock()
	var all detour.SessionList
	if err := r.config.Reader.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("list the sessions: %w", err)
	}
	if owner = otherKeyOwner(all.Items, key, s.UID); owner != nil {
		return owner, nil
	}
	var taken []netip.Addr
	for _, other := range all.Items {
		if other.UID != s.UID {
			taken = append(taken, ParseAddresses(other.Status.Addresses)...)
		}
	}
	status := *s.Status.DeepCopy()
	status.Addresses = nil
	for _, a := range r.config.Pool.next(taken) {
		status.Addresses = append(status.Addresses, a.String())
	}
	return nil, r.update(ctx, s, status)
}
