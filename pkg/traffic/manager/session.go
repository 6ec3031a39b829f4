package manager

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/version"
	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

const (
	pollPeers    = 250 * time.Millisecond
	lastSeenStep = 30 * time.Second
)

type sessionEvent = event.GenericEvent

// sessionReconciler gives laptops their addresses and keeps the truth about them in the status.
type sessionReconciler struct {
	client.Client
	reader  client.Reader
	hub     *vif.Hub
	pool    *pool
	keys    *keys
	options Options
	changed chan sessionEvent
	known   atomic.Pointer[[]netip.Prefix] // the networks that the sessions were told last

	mu        sync.Mutex
	connected map[client.ObjectKey]bool
	started   time.Time // no laptop could be heard before
	allocate  sync.Mutex
}

func (r *sessionReconciler) setup(ctx context.Context, mgr ctrl.Manager) error {
	r.connected, r.started = map[client.ObjectKey]bool{}, time.Now()
	sessions := ctrl.NewControllerManagedBy(mgr).Named("session").For(&detour.Session{}).
		WatchesRawSource(source.Channel(r.changed, &handler.EnqueueRequestForObject{})).
		Watches(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(otherNode())).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(r.elsewhere(podAddresses))).
		Watches(&corev1.Service{}, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(r.elsewhere(clusterIPs)))
	declared := false
	err := patiently(ctx, r.options.Log, func(context.Context) (err error) {
		declared, err = hasServiceCIDRs(mgr.GetRESTMapper())
		return err
	})
	if err != nil {
		return err
	}
	if declared {
		sessions = sessions.Watches(&networkingv1.ServiceCIDR{}, handler.EnqueueRequestsFromMapFunc(r.all), builder.WithPredicates(predicate.GenerationChangedPredicate{}))
	}
	if err := sessions.Complete(r); err != nil {
		return fmt.Errorf("set up the session controller: %w", err)
	}
	return nil
}

// hasServiceCIDRs says whether the cluster has the ServiceCIDR API, which is of Kubernetes 1.33.
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

// all are all sessions, for an event that concerns each.
func (r *sessionReconciler) all(ctx context.Context, _ client.Object) (requests []reconcile.Request) {
	var list detour.SessionList
	if err := r.List(ctx, &list); err != nil {
		r.options.Log.Warn("listing the sessions failed", "err", err)
	}
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return requests
}

// Reconcile brings a session's status up to date.
func (r *sessionReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var s detour.Session
	if err := r.Get(ctx, req.NamespacedName, &s); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !s.DeletionTimestamp.IsZero() {
		return ctrl.Result{}, nil
	}
	before := s.Status.DeepCopy()
	key, err := wgkey.Parse(s.Spec.PublicKey)
	if err != nil {
		r.condition(&s, metav1.ConditionFalse, "BadKey", "the session's public key is not a WireGuard key: connect again")
		return ctrl.Result{}, r.update(ctx, &s, before)
	}
	var all detour.SessionList
	if err := r.List(ctx, &all); err != nil {
		return ctrl.Result{}, fmt.Errorf("list the sessions: %w", err)
	}
	holder := otherHolder(all.Items, key, s.UID)
	var seen time.Time
	if holder == nil {
		seen = r.hub.LastReceived(key)
	}
	last := s.CreationTimestamp.Time
	if s.Status.LastSeen != nil {
		last = s.Status.LastSeen.Time
	}
	if seen.After(last) {
		last = seen
	}
	idle := min(time.Since(last), time.Since(r.started))
	if idle > r.options.SessionTTL {
		r.options.Log.Info("deleting a session whose laptop is gone", "session", req.NamespacedName, "silent", idle.Round(time.Second))
		return ctrl.Result{}, client.IgnoreNotFound(r.Delete(ctx, &s))
	}
	if holder == nil {
		if holder, err = r.assign(ctx, &s, key); err != nil {
			return ctrl.Result{}, err
		}
	}
	if holder != nil {
		s.Status.Addresses, s.Status.Connected = nil, false
		r.condition(&s, metav1.ConditionFalse, detour.ReasonKeyTaken, fmt.Sprintf("session %s in namespace %s has this public key: make a session with a key of its own, as `detour connect` does", holder.Name, holder.Namespace))
		return ctrl.Result{RequeueAfter: 10 * time.Second}, r.update(ctx, &s, before)
	}
	if len(s.Status.Addresses) == 0 {
		r.condition(&s, metav1.ConditionFalse, detour.ReasonNoAddressLeft, "no laptop address is left: widen sessionCIDR in the chart, or delete sessions that are no longer used")
		return ctrl.Result{RequeueAfter: 10 * time.Second}, r.update(ctx, &s, before)
	}
	if s.Status.Subnets, s.Status.NodeAddresses, err = r.networks(ctx); err != nil {
		return ctrl.Result{}, err
	}
	if s.Status.DNS, err = r.dns(ctx); err != nil {
		return ctrl.Result{}, err
	}
	if s.Status.UDPEndpoints, err = r.udpEndpoints(ctx); err != nil {
		return ctrl.Result{}, err
	}
	s.Status.ManagerPod = r.options.PodName
	s.Status.ManagerPublicKey = r.keys.wireguard.Public().String()
	s.Status.ManagerVersion = version.Version
	s.Status.GivenUpAfter = metav1.Duration{Duration: r.options.SessionTTL}
	s.Status.Connected = r.hub.Connected(key, r.options.StaleAfter)
	switch {
	case !compatible(s.Spec.ClientVersion, version.Version):
		r.condition(&s, metav1.ConditionFalse, detour.ReasonVersionMismatch, fmt.Sprintf("detour %s on the laptop cannot work with the traffic-manager %s: install the same version, or run detour install again", s.Spec.ClientVersion, version.Version))
	case s.Status.Connected:
		if s.Status.LastSeen == nil || seen.Sub(s.Status.LastSeen.Time) > lastSeenStep || !before.Connected {
			s.Status.LastSeen = &metav1.Time{Time: seen}
		}
		r.condition(&s, metav1.ConditionTrue, detour.ReasonConnected, "the laptop's tunnel is alive")
	case seen.IsZero() && s.Status.LastSeen == nil:
		r.condition(&s, metav1.ConditionFalse, detour.ReasonAddressAssigned, "waiting for the laptop's tunnel")
	default:
		r.condition(&s, metav1.ConditionFalse, detour.ReasonLaptopGone, "the laptop is silent: its traffic goes to the cluster's pods")
	}
	return ctrl.Result{RequeueAfter: min(lastSeenStep, r.options.SessionTTL-idle+time.Millisecond)}, r.update(ctx, &s, before)
}

func (r *sessionReconciler) condition(s *detour.Session, status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&s.Status.Conditions, metav1.Condition{Type: detour.ConditionReady, Status: status, Reason: reason, Message: message, ObservedGeneration: s.Generation})
}

func (r *sessionReconciler) update(ctx context.Context, s *detour.Session, before *detour.SessionStatus) error {
	if equality.Semantic.DeepEqual(before, &s.Status) {
		return nil
	}
	return client.IgnoreNotFound(r.Status().Update(ctx, s))
}

// assign gives the session its addresses, unless another has its key. It reads past the cache, so that two sessions never get the same one.
func (r *sessionReconciler) assign(ctx context.Context, s *detour.Session, key wgkey.Key) (holder *detour.Session, err error) {
	if r.pool.contains(parseAddresses(s.Status.Addresses)) {
		return nil, nil
	}
	r.allocate.Lock()
	defer r.allocate.Unlock()
	var all detour.SessionList
	if err := r.reader.List(ctx, &all); err != nil {
		return nil, fmt.Errorf("list the sessions: %w", err)
	}
	if holder = otherHolder(all.Items, key, s.UID); holder != nil {
		return holder, nil
	}
	var taken []netip.Addr
	for _, other := range all.Items {
		if other.UID != s.UID {
			taken = append(taken, parseAddresses(other.Status.Addresses)...)
		}
	}
	s.Status.Addresses = nil
	for _, a := range r.pool.next(taken) {
		s.Status.Addresses = append(s.Status.Addresses, a.String())
	}
	before := detour.SessionStatus{}
	return nil, r.update(ctx, s, &before)
}

func (r *sessionReconciler) dns(ctx context.Context) (detour.DNS, error) {
	dns := detour.DNS{Domain: r.options.ClusterDomain}
	var services corev1.ServiceList
	if err := r.List(ctx, &services, client.InNamespace("kube-system"), client.MatchingLabels{"k8s-app": "kube-dns"}); err != nil {
		return dns, fmt.Errorf("find the cluster's DNS: %w", err)
	}
	for _, s := range services.Items {
		for _, ip := range s.Spec.ClusterIPs {
			if ip != corev1.ClusterIPNone && ip != "" {
				dns.Servers = append(dns.Servers, ip)
			}
		}
	}
	return dns, nil
}

// watchPeers keeps the hub's peers equal to the sessions and notices laptops that come and go.
func (r *sessionReconciler) watchPeers(ctx context.Context) error {
	tick := time.NewTicker(pollPeers)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		var all detour.SessionList
		if err := r.List(ctx, &all); err != nil {
			continue
		}
		var peers []vif.Peer
		for key, s := range holders(all.Items) {
			if len(s.Status.Addresses) == 0 || !compatible(s.Spec.ClientVersion, version.Version) {
				continue
			}
			peers = append(peers, vif.Peer{PublicKey: key, Addresses: parseAddresses(s.Status.Addresses)})
			r.notice(ctx, s, key)
		}
		if err := r.hub.SetPeers(peers); err != nil {
			r.options.Log.Warn("setting the tunnel's peers failed", "err", err)
		}
	}
}

func (r *sessionReconciler) notice(ctx context.Context, s *detour.Session, key wgkey.Key) {
	now := r.hub.Connected(key, r.options.StaleAfter)
	name := client.ObjectKeyFromObject(s)
	r.mu.Lock()
	was, known := r.connected[name]
	r.connected[name] = now
	r.mu.Unlock()
	if known && was == now && s.Status.Connected == now {
		return
	}
	if was && !now {
		r.hub.ResetRelayed(key)
	}
	select {
	case r.changed <- sessionEvent{Object: s}:
	case <-ctx.Done():
	default: // the next tick tries again
	}
}

// compatible compares versions: below v1 the minor must agree, from v1 on the major.
func compatible(a, b string) bool {
	series := func(v string) string {
		parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
		if len(parts) > 1 && parts[0] == "0" {
			return "0." + parts[1]
		}
		return parts[0]
	}
	return series(a) == series(b)
}
