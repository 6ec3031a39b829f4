package intercept

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/discovery"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/traffic/manager/agents"
	"github.com/detour-dev/detour/pkg/traffic/manager/retry"
	"github.com/detour-dev/detour/pkg/workloads/argo"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// Agents is what the reconciler needs of the connected agents. *agents.Registry implements it. All
// methods may be called concurrently and are cheap.
type Agents interface {
	// Activate makes agents follow an intercept, and Deactivate makes them stop. Both do nothing if
	// nothing changes; otherwise no pod has confirmed from then on until its agents say so.
	Activate(uid string, i agents.ActiveIntercept)
	Deactivate(uid string)
	// Retain deactivates every intercept whose UID is not in alive.
	Retain(alive map[string]bool)
	// Active returns what Activate was last given, or nil.
	Active(uid string) *agents.ActiveIntercept
	// Confirmed reports whether all agents in front of a pod's port follow every intercept as it
	// is.
	Confirmed(podUID string, port int32) bool
	// PortState returns why an agent of one of the pods cannot read the port's requests, or nil.
	PortState(podUIDs map[string]bool, port int32) *agentv1.PortState
	// DroppedCopies returns how many copies the laptop of a wiretap did not get.
	DroppedCopies(uid string) uint64
	// Notify sets the function that is called when an agent confirms, reports or disconnects.
	Notify(func())
}

// Config is what a Reconciler needs from the traffic-manager.
type Config struct {
	// Client reads through the cache.
	Client client.Client
	// Reader reads from the API server without a cache.
	Reader client.Reader
	Agents Agents
	// Initial is told about each Intercept that was reconciled.
	Initial *agents.InitialSync
	// Inject is what agents are created with.
	Inject inject.Options
	// Cache and Discovery serve to follow Argo Rollouts, which a cluster may get at any time.
	Cache     cache.Cache
	Discovery discovery.ServerResourcesInterface
	// WebhookCalled returns when the API server last called the webhook.
	WebhookCalled func() time.Time
	Log           *slog.Logger
}

// Reconciler carries out Intercepts. Make one with New.
type Reconciler struct {
	client.Client
	config   Config
	started  time.Time
	wake     chan event.GenericEvent
	rollouts *rollouts
}

// New returns a Reconciler. It does nothing before Setup.
func New(c Config) *Reconciler {
	c.Log = c.Log.With("component", "intercepts")
	return &Reconciler{
		Client: c.Client, config: c, started: time.Now(), wake: make(chan event.GenericEvent, 1),
		rollouts: &rollouts{discovery: c.Discovery, cache: c.Cache, log: c.Log},
	}
}

// Setup adds the controller to mgr. It asks the API server and waits until that answers.
func (r *Reconciler) Setup(ctx context.Context, mgr ctrl.Manager) error {
	r.config.Agents.Notify(func() {
		select {
		case r.wake <- event.GenericEvent{Object: &detour.Intercept{}}:
		default:
		}
	})
	all := handler.EnqueueRequestsFromMapFunc(r.requests)
	c, err := ctrl.NewControllerManagedBy(mgr).Named("intercept").For(&detour.Intercept{}).
		Watches(&detour.Session{}, all).Watches(&detour.Intercept{}, all).
		Watches(&corev1.Pod{}, all).Watches(&corev1.Service{}, all).
		Watches(&appsv1.Deployment{}, all).Watches(&appsv1.StatefulSet{}, all).Watches(&appsv1.DaemonSet{}, all).
		WatchesRawSource(source.Channel(r.wake, all)).Build(r)
	if err != nil {
		return fmt.Errorf("set up the intercept controller: %w", err)
	}
	r.rollouts.watch = func() error {
		return c.Watch(source.Kind[client.Object](mgr.GetCache(), argo.New(), all))
	}
	// Before the first Reconcile: a new manager must not refuse an intercept of a Rollout because
	// it does not know yet that the cluster has Rollouts.
	return retry.Do(ctx, r.config.Log, r.rollouts.refresh)
}

// FollowRollouts notices when Argo Rollouts are installed or removed. It returns when ctx ends.
func (r *Reconciler) FollowRollouts(ctx context.Context) error { return r.rollouts.follow(ctx) }

// requests returns a request for each Intercept in the namespace of an object that changed, or for
// all Intercepts if it has no namespace, and one without a name if a container may have to be
// restored.
func (r *Reconciler) requests(ctx context.Context, o client.Object) []reconcile.Request {
	var list detour.InterceptList
	var in []client.ListOption
	if o.GetNamespace() != "" {
		in = append(in, client.InNamespace(o.GetNamespace()))
	}
	if err := r.List(ctx, &list, in...); err != nil {
		return nil
	}
	var requests []reconcile.Request
	if mayRestore(o) {
		requests = append(requests, reconcile.Request{})
	}
	for i := range list.Items {
		requests = append(requests, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&list.Items[i])})
	}
	return requests
}

// Refusal is an error that only the user can resolve. Reason is that of the Ready condition.
type Refusal struct{ Reason, Message string }

func (r Refusal) Error() string { return r.Message }

func refuse(reason, format string, args ...any) error {
	return Refusal{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func asRefusal(err error) (refusal Refusal, ok bool) {
	ok = errors.As(err, &refusal)
	return refusal, ok
}

// Reconcile brings one intercept forward. A request without a name restores the containers that no
// intercept replaces any longer: an intercept that is deleted cannot ask for that itself.
func (r *Reconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if req.Name == "" {
		return ctrl.Result{}, r.restore(ctx)
	}
	result, err := r.reconcile(ctx, req)
	if err == nil {
		r.config.Initial.Reconciled(req.NamespacedName)
	}
	return result, err
}

func (r *Reconciler) reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var i detour.Intercept
	if err := r.Get(ctx, req.NamespacedName, &i); err != nil {
		if apierrors.IsNotFound(err) {
			r.prune(ctx)
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	now := time.Now()
	if finished(&i, now) {
		return ctrl.Result{}, r.end(ctx, &i)
	}
	f, err := r.observe(ctx, &i, now)
	if err != nil {
		return ctrl.Result{}, err
	}
	d := decide(f, now)
	if d.attach != nil {
		err := r.attach(ctx, d.attach)
		refusal, refused := asRefusal(err)
		if err != nil && !refused {
			return ctrl.Result{}, err
		}
		f.attachTried = true
		if refused {
			f.attachRefusal = &refusal
		}
		d = decide(f, now)
	}
	return r.apply(ctx, f, d)
}

// prune deactivates intercepts whose objects are deleted.
func (r *Reconciler) prune(ctx context.Context) {
	var list detour.InterceptList
	if err := r.List(ctx, &list); err != nil {
		return
	}
	alive := map[string]bool{}
	for _, i := range list.Items {
		alive[string(i.UID)] = true
	}
	r.config.Agents.Retain(alive)
}

// end deletes an intercept whose time to live is over.
func (r *Reconciler) end(ctx context.Context, i *detour.Intercept) error {
	r.config.Agents.Deactivate(string(i.UID))
	r.config.Log.Info("deleting an intercept whose time to live is over",
		"intercept", client.ObjectKeyFromObject(i), "duration", i.Spec.TTL.Duration)
	return client.IgnoreNotFound(r.Delete(ctx, i))
}

// initialSyncTimeout is how long agents wait at most until a new manager has reconciled every
// intercept. Without any manager they would let the apps answer soon after that.
const initialSyncTimeout = 5 * time.Second

// RunInitialSync finds out which Intercepts a manager starts with, once it is the leader. An
// Intercept that cannot be reconciled does not hold up the agents for long.
func (r *Reconciler) RunInitialSync(ctx context.Context) error {
	initial := r.config.Initial
	var list detour.InterceptList
	if err := r.List(ctx, &list); err != nil {
		r.config.Log.Warn("listing the intercepts at the start failed", "err", err)
		initial.Finish()
		return nil
	}
	keys := make([]client.ObjectKey, 0, len(list.Items))
	for i := range list.Items {
		keys = append(keys, client.ObjectKeyFromObject(&list.Items[i]))
	}
	initial.Expect(keys)
	select {
	case <-ctx.Done():
	case <-initial.Done():
	case <-time.After(initialSyncTimeout):
		r.config.Log.Warn("some intercepts are not reconciled yet: telling the agents about the others")
		initial.Finish()
	}
	return nil
}
