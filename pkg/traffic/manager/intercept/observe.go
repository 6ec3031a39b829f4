package intercept

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/traffic/manager/agents"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// facts are all that the decision about an intercept depends on, apart from the time. What comes
// after a fact that settles the decision is not observed: without a session there is no target, and
// so on.
type facts struct {
	intercept *detour.Intercept // as it is stored
	session   *detour.Session   // nil: it does not exist

	target        *workload          // what the intercept is about; nil if it cannot be intercepted
	targetRefusal *Refusal           // why it cannot
	others        []detour.Intercept // of the namespace, the intercept itself included
	plan          inject.Plan        // what new pods of the target get now
	planErr       error              // the target's annotation is damaged
	pods          []corev1.Pod       // of the target, those that are ending included
	siblings      []inject.Port      // ports that the session's other intercepts of the service need
	stillReplaced bool               // another intercept replaces the same container
	agents        agentFacts

	started       time.Time // of the manager
	webhookCalled time.Time // when the API server last called the webhook

	attachTried   bool     // the agent was attached to the pods that the decision named ...
	attachRefusal *Refusal // ... unless this kept it from one of them
}

// agentFacts are what the connected agents do and know.
type agentFacts struct {
	active    *agents.ActiveIntercept // what they follow for this intercept; nil if they do not
	confirmed map[string]bool         // UIDs of the pods that have confirmed everything up to now
	portState *agentv1.PortState      // why they cannot read requests, or nil
	dropped   uint64                  // copies that the laptop did not get
}

// observe reads all facts about an intercept. It changes nothing.
func (r *Reconciler) observe(ctx context.Context, i *detour.Intercept, now time.Time) (facts, error) {
	f := facts{intercept: i, started: r.started, webhookCalled: r.config.WebhookCalled()}
	var session detour.Session
	err := r.Get(ctx, client.ObjectKey{Namespace: i.Namespace, Name: i.Spec.Session}, &session)
	if client.IgnoreNotFound(err) != nil {
		return f, err
	} else if err != nil {
		return f, nil
	}
	f.session = &session
	if f.target, err = r.resolve(ctx, i); err != nil {
		refusal, refused := asRefusal(err)
		if !refused {
			return f, err
		}
		f.target, f.targetRefusal = nil, &refusal
		return f, nil
	}
	if i.Spec.Mode == detour.ModeIngest {
		return f, nil
	}
	var others detour.InterceptList
	if err := r.List(ctx, &others, client.InNamespace(i.Namespace)); err != nil {
		return f, err
	}
	f.others = others.Items
	if f.plan, f.planErr = inject.ParsePlan(annotationOf(f.target.Object)); f.planErr != nil {
		return f, nil
	}
	if f.pods, err = r.pods(ctx, f.target); err != nil {
		return f, err
	}
	f.agents = r.observeAgents(i, f.intercepted(), f.pods)
	if target := f.intercepted(); !target.covered(f.plan) {
		f.siblings = r.siblings(ctx, i, target, f.plan)
	}
	if f.target.container != "" && (i.Spec.Suspend || expired(i, now)) {
		f.stillReplaced, err = r.stillReplaced(ctx, i, f.target, now)
	}
	return f, err
}

// intercepted returns the target with the Secret that the agents are to use for the port.
func (f *facts) intercepted() *workload {
	target := *f.target
	if f.intercept.Spec.TLS != nil {
		target.port.Secret = f.intercept.Spec.TLS.Secret
	}
	return &target
}

func (r *Reconciler) observeAgents(i *detour.Intercept, target *workload, pods []corev1.Pod) agentFacts {
	uid := string(i.UID)
	f := agentFacts{
		active: r.config.Agents.Active(uid), dropped: r.config.Agents.DroppedCopies(uid),
		confirmed: map[string]bool{},
	}
	with := map[string]bool{}
	for n := range pods {
		p := string(pods[n].UID)
		f.confirmed[p] = r.config.Agents.Confirmed(p, target.port.Port)
		with[p] = target.changed(&pods[n])
	}
	f.portState = r.config.Agents.PortState(with, target.port.Port)
	return f
}

// stillReplaced reports whether another intercept, such as one of another port, replaces the
// container. It reads without the cache: an intercept that was created a moment ago counts.
func (r *Reconciler) stillReplaced(
	ctx context.Context, i *detour.Intercept, target *workload, now time.Time,
) (bool, error) {
	var all detour.InterceptList
	if err := r.config.Reader.List(ctx, &all, client.InNamespace(i.Namespace)); err != nil {
		return false, fmt.Errorf("list the intercepts: %w", err)
	}
	return replaced(all.Items, target, target.container, now), nil
}
