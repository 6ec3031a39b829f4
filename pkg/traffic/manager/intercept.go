package manager

import (
	"context"
	"fmt"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/route/spec"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// interceptReconciler gets agents into the workload's pods and says when traffic really flows.
type interceptReconciler struct {
	client.Client
	reader  client.Reader // past the cache
	agents  *agents
	inject  inject.Options
	options Options
	started time.Time
	wake    chan event.GenericEvent
	// webhookAsked is when the API server last asked the webhook.
	webhookAsked func() time.Time

	rollouts *rollouts
}

func (r *interceptReconciler) setup(ctx context.Context, mgr ctrl.Manager) error {
	r.wake, r.started = make(chan event.GenericEvent, 1), time.Now()
	r.agents.notify = func() {
		select {
		case r.wake <- event.GenericEvent{Object: &detour.Intercept{}}:
		default:
		}
	}
	all := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, o client.Object) []reconcile.Request {
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
	})
	c, err := ctrl.NewControllerManagedBy(mgr).Named("intercept").For(&detour.Intercept{}).
		Watches(&detour.Session{}, all).Watches(&detour.Intercept{}, all).Watches(&corev1.Pod{}, all).Watches(&corev1.Service{}, all).
		Watches(&appsv1.Deployment{}, all).Watches(&appsv1.StatefulSet{}, all).Watches(&appsv1.DaemonSet{}, all).
		WatchesRawSource(source.Channel(r.wake, all)).Build(r)
	if err != nil {
		return fmt.Errorf("set up the intercept controller: %w", err)
	}
	r.rollouts.watch = func() error { return c.Watch(source.Kind[client.Object](mgr.GetCache(), argo.New(), all)) }
	// Before anything is reconciled: an intercept of a Rollout must not be refused because the manager is new.
	return patiently(ctx, r.options.Log, r.rollouts.look)
}

// refusal is an answer that only the user can change.
type refusal struct{ reason, message string }

func (r refusal) Error() string { return r.message }

func refuse(reason, format string, args ...any) error {
	return refusal{reason, fmt.Sprintf(format, args...)}
}

// Reconcile brings one intercept forward. Without a name it restores what no intercept replaces any longer: one that is gone cannot
// ask for it.
func (r *interceptReconciler) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	if req.Name == "" {
		return ctrl.Result{}, r.restore(ctx)
	}
	result, err := r.reconcile(ctx, req)
	if err == nil {
		r.agents.first.did(req.NamespacedName)
	}
	return result, err
}

func (r *interceptReconciler) reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var i detour.Intercept
	if err := r.Get(ctx, req.NamespacedName, &i); err != nil {
		if apierrors.IsNotFound(err) {
			r.prune(ctx)
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	over, left := expired(&i)
	// A replaced container runs again before its intercept is gone: until then the laptop does its work.
	if over && (i.Spec.Mode != detour.ModeReplace || i.Status.Phase == detour.PhaseSuspended || i.Status.Phase == detour.PhaseRefused) {
		return ctrl.Result{}, r.end(ctx, &i)
	}
	before := i.Status.DeepCopy()
	err := r.advance(ctx, &i)
	if no, ok := err.(refusal); ok { //nolint:errorlint // made here, never wrapped
		r.agents.set(string(i.UID), nil)
		set(&i, detour.PhaseRefused, metav1.ConditionFalse, no.reason, no.message)
		err = nil
	}
	if err != nil {
		return ctrl.Result{}, err
	}
	if !equality.Semantic.DeepEqual(before, &i.Status) {
		if err := r.Status().Update(ctx, &i); err != nil {
			return ctrl.Result{}, client.IgnoreNotFound(err)
		}
	}
	if i.Status.Phase == detour.PhaseActive || i.Status.Phase == detour.PhaseRefused {
		again := 30 * time.Second
		if left > 0 {
			again = min(again, left+10*time.Millisecond)
		}
		return ctrl.Result{RequeueAfter: again}, nil
	}
	return ctrl.Result{RequeueAfter: time.Second}, nil
}

// prune takes intercepts out of force whose objects are gone.
func (r *interceptReconciler) prune(ctx context.Context) {
	var list detour.InterceptList
	if err := r.List(ctx, &list); err != nil {
		return
	}
	alive := map[string]bool{}
	for _, i := range list.Items {
		alive[string(i.UID)] = true
	}
	r.agents.mu.Lock()
	var gone []string
	for uid := range r.agents.inForce {
		if !alive[uid] {
			gone = append(gone, uid)
		}
	}
	r.agents.mu.Unlock()
	for _, uid := range gone {
		r.agents.set(uid, nil)
	}
}

func set(i *detour.Intercept, phase detour.InterceptPhase, status metav1.ConditionStatus, reason, message string) {
	i.Status.Phase = phase
	meta.SetStatusCondition(&i.Status.Conditions, metav1.Condition{Type: detour.ConditionReady, Status: status, Reason: reason, Message: message, ObservedGeneration: i.Generation})
}

func (r *interceptReconciler) advance(ctx context.Context, i *detour.Intercept) error {
	var session detour.Session
	if err := r.Get(ctx, client.ObjectKey{Namespace: i.Namespace, Name: i.Spec.Session}, &session); err != nil {
		if apierrors.IsNotFound(err) {
			return refuse(detour.ReasonSessionNotFound, "session %s does not exist: connect again", i.Spec.Session)
		}
		return err
	}
	i.Status.Laptop = session.Spec.User + "@" + session.Spec.Host
	target, err := r.resolve(ctx, i)
	if err != nil {
		return err
	}
	i.Status.Workload = &detour.WorkloadRef{Kind: target.Kind, Name: target.Object.GetName()}
	i.Status.Container = target.container
	if i.Spec.Mode == detour.ModeIngest {
		ingest(i, target)
		return nil
	}
	match := spec.FromAPI(i.Spec.Match)
	i.Status.Requests = route.Describe(match)
	if target.port.Port == 0 {
		i.Status.Requests = "the work of container " + target.container
	}
	if i.Spec.Mode == detour.ModeWiretap {
		i.Status.Requests = "copies of " + i.Status.Requests
	}
	if match != nil {
		if _, err := route.Compile(match); err != nil {
			return refuse(detour.ReasonUnsupported, "%s", err)
		}
	}
	i.Status.ServicePort = target.servicePort
	i.Status.ContainerPort, i.Status.Redirect, i.Status.Protocol = target.port.Port, target.port.Via, corev1.Protocol(target.port.Protocol)
	if err := r.conflict(ctx, i); err != nil {
		return err
	}
	plan, err := inject.ParsePlan(annotationOf(target.Object))
	if err != nil {
		return refuse(detour.ReasonUnsupported, "%s/%s: %s: remove it and try again", strings.ToLower(target.Kind), target.Object.GetName(), err)
	}
	over, _ := expired(i)
	switch {
	case target.container != "" && (i.Spec.Suspend || over):
		return r.giveBack(ctx, i, target)
	case i.Spec.Suspend:
		return r.suspend(ctx, i, target)
	}
	byRequest := match != nil || i.Spec.Mode == detour.ModeWiretap
	if byRequest && target.port.Protocol != "" {
		return refuse(detour.ReasonUnsupported, "port %d of %s is %s: there are no requests that could be told apart, so intercept all of it, without conditions", target.port.Port, target.Name(), target.port.Protocol)
	}
	if err := target.setSecret(i, plan, byRequest); err != nil {
		return err
	}
	attached := i.Spec.Attach && !target.covered(plan)
	if attached {
		i.Status.Redirect = inject.ViaAttach
	}
	if !attached && !target.covered(plan) {
		if err := r.annotate(ctx, target, r.together(ctx, i, target, target.cover(plan))); err != nil {
			return err
		}
		set(i, detour.PhasePending, metav1.ConditionFalse, detour.ReasonRollingOut, "rolling out "+target.Name()+" "+target.with())
		return nil
	}
	pods, err := r.pods(ctx, target)
	if err != nil {
		return err
	}
	fails := i.Spec.OnFailure == detour.OnFailureError || target.container != ""
	with, without := map[string]bool{}, 0
	serving := map[string]bool{} // of these, those whose traffic the laptop gets
	for _, p := range pods {
		switch {
		case target.changed(&p):
			with[string(p.UID)] = true
			// Where the app's container is replaced, nobody else could answer.
			if target.container != "" || target.leftOut == "" || p.Labels[argo.HashLabel] != target.leftOut {
				serving[string(p.UID)] = true
			}
		case !attached || workloads.PodReady(&p): // one that is ending is not attached to any more
			without++
		}
	}
	force := func() {
		if target.port.Port != 0 && len(session.Status.Addresses) > 0 {
			r.agents.set(string(i.UID), &desired{uid: string(i.UID), namespace: i.Namespace, service: i.Spec.Service, port: target.port.Port, pods: serving, address: session.Status.Addresses[0], match: match, errors: fails, wiretap: i.Spec.Mode == detour.ModeWiretap, laptop: i.Status.Laptop, plaintext: i.Spec.TLS != nil && i.Spec.TLS.LocalPlaintext, datagrams: target.port.Protocol != ""})
		}
	}
	if !session.Status.Connected {
		phase, inForce, message := gone(i.Status.Phase, fails, target.container != "")
		if inForce {
			force() // also by a manager that is new
		} else if !fails {
			r.agents.set(string(i.UID), nil)
		}
		set(i, phase, metav1.ConditionFalse, detour.ReasonLaptopGone, message)
		return nil
	}
	var unattached error
	if attached {
		unattached = r.attach(ctx, i, target, plan, pods)
		// What is in force stays so: a new pod to which nothing can be attached answers itself.
		if _, refused := unattached.(refusal); unattached != nil && (!refused || i.Status.Phase != detour.PhaseActive) { //nolint:errorlint // made here, never wrapped
			return unattached
		}
	}
	if found := r.agents.found(with, target.port.Port); byRequest && found != nil {
		return target.refuseTLS(found)
	}
	if len(session.Status.Addresses) == 0 {
		return nil
	}
	i.Status.Agents = fmt.Sprintf("0/%d", len(pods))
	done, waiting := target.rolledOut()
	var missed *corev1.Pod // by the webhook, and no pod that is still to be replaced by a new one
	if done && without > 0 && !attached {
		missed = target.missed(plan, pods)
	}
	if !done && !attached || without > 0 {
		again := missed != nil && target.worthwhile(i, plan, missed)
		message := fmt.Sprintf("rolling out %s %s (%d pods with it, %d still without)", target.Name(), target.with(), len(with), without)
		if attached {
			message = fmt.Sprintf("attaching the traffic-agent to the pods of %s (%d pods with it, %d still without)", target.Name(), len(with), without)
		}
		switch why := workloads.StartFailure(pods); {
		case why != "":
			message += ": " + why
		case again:
			message += fmt.Sprintf(": pod %s was made without it, rolling out once more", missed.Name)
		case missed != nil:
			message += fmt.Sprintf(": pod %s was made without it, %s", missed.Name, r.whyMissed(missed))
		case done && without > 0 && !attached:
			message += ": waiting for the old pods to end"
		case waiting != "":
			message += ": " + waiting
		}
		if target.container != "" {
			force() // in the new pods there is no app that could answer
		}
		if again {
			if err := r.again(ctx, target, plan, missed); err != nil {
				return err
			}
		}
		// Not in force before every pod can do it: until then all answers come from the cluster.
		if i.Status.Phase != detour.PhaseActive || (target.container != "" && without > 0) {
			set(i, detour.PhasePending, metav1.ConditionFalse, detour.ReasonRollingOut, message)
			return nil
		}
	}
	force()
	confirmed, ready := 0, 0
	for _, p := range pods {
		if !workloads.PodReady(&p) {
			continue
		}
		ready++
		if with[string(p.UID)] && (target.port.Port == 0 || r.agents.confirmed(string(p.UID), target.port.Port)) {
			confirmed++
		}
	}
	if i.Status.Phase != detour.PhaseActive {
		// What is known of the pods may lag behind what is known of their workload: a pod that serves already must not be forgotten.
		ready = max(ready, target.available())
	}
	i.Status.Agents = fmt.Sprintf("%d/%d", confirmed, ready)
	i.Status.Dropped = max(i.Status.Dropped, int64(r.agents.lost(string(i.UID))))
	if confirmed < ready && i.Status.Phase != detour.PhaseActive {
		message := fmt.Sprintf("waiting for the agents of %s (%d of %d)", target.Name(), confirmed, ready)
		if why := workloads.StartFailure(pods); why != "" {
			message += ": " + why
		}
		set(i, detour.PhasePending, metav1.ConditionFalse, detour.ReasonWaitingForAgents, message)
		return nil
	}
	message := fmt.Sprintf("%s sends %s to %s", target.Name(), i.Status.Requests, i.Status.Laptop)
	if target.container != "" {
		message = fmt.Sprintf("container %s of %s does not run, %s does its work", target.container, target.Name(), i.Status.Laptop)
	}
	if missed != nil {
		message += fmt.Sprintf(", but for pod %s, which was made without the traffic-agent and answers itself", missed.Name)
	}
	if unattached != nil {
		message += ", but for a new pod: " + unattached.Error()
	}
	set(i, detour.PhaseActive, metav1.ConditionTrue, detour.ReasonActive, message)
	return nil
}

// ingest says whose environment a laptop has. Nothing else happens to the workload.
func ingest(i *detour.Intercept, target *workload) {
	i.Status.Requests = "no traffic, the environment of container " + target.container
	if i.Spec.Suspend {
		set(i, detour.PhaseSuspended, metav1.ConditionFalse, detour.ReasonSuspended, "nothing has changed in the cluster")
		return
	}
	set(i, detour.PhaseActive, metav1.ConditionTrue, detour.ReasonActive, fmt.Sprintf("%s has the environment of container %s of %s", i.Status.Laptop, target.container, target.Name()))
}

// gone says what becomes of an intercept whose laptop is silent, and whether it is in force meanwhile: where the app must not answer it is, but one that never was
// does not begin so.
func gone(phase detour.InterceptPhase, fails, replaced bool) (_ detour.InterceptPhase, inForce bool, message string) {
	switch {
	case replaced:
		return detour.PhaseLaptopGone, true, "the laptop is silent: nobody does the replaced container's work until it is back or its session is given up"
	case fails && phase != detour.PhaseActive && phase != detour.PhaseLaptopGone:
		return detour.PhasePending, false, "the laptop is silent: its intercept begins when it is back"
	case fails:
		return detour.PhaseLaptopGone, true, "the laptop is silent: its traffic gets errors until it is back"
	}
	return detour.PhaseLaptopGone, false, "the laptop is silent: the cluster's pods answer until it is back"
}

// expired says whether the time of an intercept is over, and else how long it has left; 0 when it has no end.
func expired(i *detour.Intercept) (over bool, left time.Duration) {
	if i.Spec.TTL == nil {
		return false, 0
	}
	left = time.Until(i.CreationTimestamp.Add(i.Spec.TTL.Duration))
	return left <= 0, max(left, 0)
}

// end deletes an intercept whose time is over.
func (r *interceptReconciler) end(ctx context.Context, i *detour.Intercept) error {
	r.agents.set(string(i.UID), nil)
	r.options.Log.Info("deleting an intercept whose time is over", "intercept", client.ObjectKeyFromObject(i), "ttl", i.Spec.TTL.Duration)
	return client.IgnoreNotFound(r.Delete(ctx, i))
}

// suspend gives the traffic back and waits until the agents have confirmed it.
func (r *interceptReconciler) suspend(ctx context.Context, i *detour.Intercept, target *workload) error {
	r.agents.set(string(i.UID), nil)
	pods, err := r.pods(ctx, target)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if workloads.PodReady(&p) && target.listens(&p) && !r.agents.confirmed(string(p.UID), target.port.Port) {
			set(i, detour.PhaseSuspending, metav1.ConditionFalse, detour.ReasonWaitingForAgents, "giving the traffic back to the cluster")
			return nil
		}
	}
	set(i, detour.PhaseSuspended, metav1.ConditionFalse, detour.ReasonSuspended, "the cluster's pods answer")
	return nil
}
