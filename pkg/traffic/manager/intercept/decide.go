package intercept

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/route"
	"github.com/detour-dev/detour/pkg/route/spec"
	"github.com/detour-dev/detour/pkg/traffic/manager/agents"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

const (
	// settledRecheck is when an intercept that is active or refused is looked at again. Every
	// change that the manager watches wakes it earlier; this is for what it does not watch.
	settledRecheck = 30 * time.Second
	// unsettledRecheck is when any other intercept is looked at again: it waits for something that
	// may happen without an event, such as the end of a pause.
	unsettledRecheck = time.Second
	// ttlSlack makes sure that an intercept has expired when it is looked at for that.
	ttlSlack = 10 * time.Millisecond
)

// decision is what is to happen to an intercept.
type decision struct {
	// attach is set if the agent has to be attached to pods before anything else can be decided.
	attach *attachment
	// activate is what agents are to follow, and deactivate that they are to follow nothing. With
	// neither they keep to what they do.
	activate   *agents.ActiveIntercept
	deactivate bool
	// restore is set if the containers that no intercept replaces any longer are to run again.
	restore bool
	// annotate is the plan that new pods of the target are to get; nil leaves the target alone.
	annotate *inject.Plan
	// missed is the pod because of which annotate only repeats a rollout.
	missed string
	// status is what the intercept's status is to be.
	status detour.InterceptStatus
	// requeue is when the intercept is to be reconciled again even if nothing happens.
	requeue time.Duration
}

// decide returns what is to happen to an intercept. It depends on its arguments only and changes
// none.
func decide(f facts, now time.Time) decision {
	d := decider{facts: f, now: now, i: f.intercept.DeepCopy()}
	if err := d.decide(); err != nil {
		refusal, ok := asRefusal(err)
		if !ok { // no part of a decision can fail otherwise
			refusal = Refusal{Reason: detour.ReasonUnsupported, Message: err.Error()}
		}
		d.decision = decision{deactivate: true}
		d.set(detour.PhaseRefused, refusal.Reason, refusal.Message)
	}
	d.status, d.requeue = d.i.Status, unsettledRecheck
	if d.i.Status.Phase == detour.PhaseActive || d.i.Status.Phase == detour.PhaseRefused {
		d.requeue = settledRecheck
		if left := timeLeft(f.intercept, now); left > 0 {
			d.requeue = min(d.requeue, left+ttlSlack)
		}
	}
	return d.decision
}

// decider makes one decision. Each of its steps either ends the decision or leaves it to the next.
type decider struct {
	facts
	decision
	now time.Time
	i   *detour.Intercept // a copy, whose status becomes the decided one

	match     bool // requests are selected, or copied: the agent has to read them
	attached  bool // running pods get the agent
	rollout   rollout
	missedPod *corev1.Pod
}

func (d *decider) set(phase detour.InterceptPhase, reason, message string) {
	status := metav1.ConditionFalse
	if phase == detour.PhaseActive {
		status = metav1.ConditionTrue
	}
	d.i.Status.Phase = phase
	meta.SetStatusCondition(&d.i.Status.Conditions, metav1.Condition{
		Type: detour.ConditionReady, Status: status, Reason: reason, Message: message,
		ObservedGeneration: d.i.Generation, LastTransitionTime: metav1.NewTime(d.now),
	})
}

// decide fills the decision in. An error is a refusal.
func (d *decider) decide() error {
	if d.session == nil {
		return refuse(detour.ReasonSessionNotFound, "session %s does not exist: connect again", d.i.Spec.Session)
	}
	d.i.Status.Laptop = d.session.Spec.User + "@" + d.session.Spec.Host
	if d.targetRefusal != nil {
		return *d.targetRefusal
	}
	d.i.Status.Workload = &detour.WorkloadRef{Kind: d.target.Kind, Name: d.target.Object.GetName()}
	d.i.Status.Container = d.target.container
	if d.i.Spec.Mode == detour.ModeIngest {
		d.ingest()
		return nil
	}
	if err := d.describe(); err != nil {
		return err
	}
	if err := conflict(d.i, d.others); err != nil {
		return err
	}
	if d.planErr != nil {
		return refuse(detour.ReasonUnsupported, "%s: %s: remove it and try again", d.target.Name(), d.planErr)
	}
	if d.i.Spec.Suspend || d.target.container != "" && expired(d.i, d.now) {
		d.giveBack()
		return nil
	}
	if err := d.checkPort(); err != nil {
		return err
	}
	d.target = d.intercepted()
	if !d.target.covered(d.plan) {
		if !d.i.Spec.Attach {
			d.rollOut()
			return nil
		}
		d.attached = true
		d.i.Status.Redirect = inject.ViaAttach
	}
	return d.intercept()
}

// ingest decides about an intercept whose laptop only reads the environment of a container.
func (d *decider) ingest() {
	d.i.Status.Requests = "no traffic, the environment of container " + d.target.container
	if d.i.Spec.Suspend {
		d.set(detour.PhaseSuspended, detour.ReasonSuspended, "nothing has changed in the cluster")
		return
	}
	d.set(detour.PhaseActive, detour.ReasonActive, fmt.Sprintf("%s has the environment of container %s of %s",
		d.i.Status.Laptop, d.target.container, d.target.Name()))
}

// describe fills in what the status says about the intercepted traffic.
func (d *decider) describe() error {
	match := spec.FromAPI(d.i.Spec.Match)
	d.match = match != nil || d.i.Spec.Mode == detour.ModeWiretap
	d.i.Status.Requests = route.Describe(match)
	if d.target.port.Port == 0 {
		d.i.Status.Requests = "the work of container " + d.target.container
	}
	if d.i.Spec.Mode == detour.ModeWiretap {
		d.i.Status.Requests = "copies of " + d.i.Status.Requests
	}
	if match != nil {
		if _, err := route.Compile(match); err != nil {
			return refuse(detour.ReasonUnsupported, "%s", err)
		}
	}
	d.i.Status.ServicePort = d.target.servicePort
	d.i.Status.ContainerPort, d.i.Status.Redirect = d.target.port.Port, d.target.port.Via
	d.i.Status.Protocol = corev1.Protocol(d.target.port.Protocol)
	return nil
}

// checkPort refuses a port whose requests have to be read and cannot be.
func (d *decider) checkPort() error {
	if d.match && d.target.port.Protocol != "" {
		return refuse(detour.ReasonUnsupported,
			"port %d of %s is a %s port, which has no requests to match: intercept the whole port, without conditions",
			d.target.port.Port, d.target.Name(), d.target.port.Protocol)
	}
	return d.target.checkTLS(d.i, d.plan, d.match)
}

// rollOut decides that new pods are needed. One rollout serves all of the session's intercepts of
// the service.
func (d *decider) rollOut() {
	plan := d.target.cover(d.plan)
	for _, p := range d.siblings {
		plan = plan.With(p, d.target.Template)
	}
	d.annotate = &plan
	d.set(detour.PhasePending, detour.ReasonRollingOut, "rolling out "+d.target.Name()+" "+d.target.addition())
}

// intercept decides about an intercept whose pods have the agent, are getting it by a rollout, or
// are to have it attached.
func (d *decider) intercept() error {
	d.rollout = d.target.countPods(d.pods, d.attached)
	if !d.session.Status.Connected {
		d.laptopGone()
		return nil
	}
	unattached, settled := d.attachPods()
	switch {
	case settled:
		return nil
	// A running intercept stays: a new pod to which nothing can be attached lets the app answer.
	case unattached != nil && d.i.Status.Phase != detour.PhaseActive:
		return *unattached
	case d.match && d.agents.portState != nil:
		return d.target.refuseTLS(d.agents.portState)
	case len(d.session.Status.Addresses) == 0:
		return nil
	}
	d.i.Status.Agents = fmt.Sprintf("0/%d", len(d.pods))
	if d.waitForRollout() || d.waitForAgents() {
		return nil
	}
	message := fmt.Sprintf("%s sends %s to %s", d.target.Name(), d.i.Status.Requests, d.i.Status.Laptop)
	if d.target.container != "" {
		message = fmt.Sprintf("container %s of %s does not run, %s does its work",
			d.target.container, d.target.Name(), d.i.Status.Laptop)
	}
	if d.missedPod != nil {
		message += fmt.Sprintf(", except pod %s, which was created without the traffic-agent and answers itself",
			d.missedPod.Name)
	}
	if unattached != nil {
		message += ", except a new pod: " + unattached.Error()
	}
	d.set(detour.PhaseActive, detour.ReasonActive, message)
	return nil
}

// errorOnFailure reports whether the app must not answer in place of the laptop. Where the app's
// container is replaced nobody could.
func (d *decider) errorOnFailure() bool {
	return d.i.Spec.OnFailure == detour.OnFailureError || d.target.container != ""
}

// follow decides that agents are to follow the intercept, if it is about a port.
func (d *decider) follow() {
	if d.target.port.Port == 0 || len(d.session.Status.Addresses) == 0 {
		return
	}
	d.activate = &agents.ActiveIntercept{
		Port: d.target.port.Port, Pods: d.rollout.serving, Address: d.session.Status.Addresses[0],
		Laptop: d.i.Status.Laptop, Match: spec.FromAPI(d.i.Spec.Match), Wiretap: d.i.Spec.Mode == detour.ModeWiretap,
		LocalPlaintext: d.i.Spec.TLS != nil && d.i.Spec.TLS.LocalPlaintext,
		Datagrams:      d.target.port.Protocol != "", ErrorOnFailure: d.errorOnFailure(),
	}
}

// laptopGone decides about an intercept whose laptop does not respond.
func (d *decider) laptopGone() {
	phase, active, message := whileLaptopGone(d.i.Status.Phase, d.errorOnFailure(), d.target.container != "")
	if active {
		d.follow() // a new manager has to activate it too
	} else if !d.errorOnFailure() {
		d.deactivate = true
	}
	d.set(phase, detour.ReasonLaptopGone, message)
}

// attachPods decides which pods the agent is to be attached to. It returns why it cannot be
// attached to one of them, and whether nothing else can be decided before it is tried.
func (d *decider) attachPods() (unattached *Refusal, settled bool) {
	if !d.attached {
		return nil, false
	}
	if err := d.target.checkAttach(); err != nil {
		refusal, _ := asRefusal(err)
		return &refusal, false
	}
	if d.attachTried {
		return d.attachRefusal, false
	}
	a := &attachment{ports: []inject.Port{d.target.port}}
	for _, p := range d.siblings {
		if p.Protocol == "" && p.Secret == "" {
			a.ports = append(a.ports, p)
		}
	}
	for n := range d.pods {
		if attachable(&d.pods[n]) && !inject.HasAgent(&d.pods[n], d.target.port) {
			a.pods = append(a.pods, client.ObjectKeyFromObject(&d.pods[n]))
		}
	}
	if len(a.pods) == 0 {
		return nil, false
	}
	d.decision.attach = a
	return nil, true
}

// waitForRollout decides about an intercept some of whose pods do not have the agent. It reports
// whether that settles the decision.
func (d *decider) waitForRollout() bool {
	done, waiting := d.target.rolledOut()
	without := d.rollout.without
	if done && without > 0 && !d.attached {
		d.missedPod = d.target.missedPod(d.plan, d.pods)
	}
	if (done || d.attached) && without == 0 {
		return false
	}
	again := d.missedPod != nil && d.target.worthRepeating(d.i, d.plan, d.missedPod, d.now)
	message := d.rolloutMessage(done, again, waiting)
	if d.target.container != "" {
		d.follow() // in the new pods there is no app that could answer
	}
	if again {
		d.repeatRollout()
	}
	// The intercept begins when every pod has the agent: until then all answers come from the
	// cluster.
	if d.i.Status.Phase == detour.PhaseActive && (d.target.container == "" || without == 0) {
		return false
	}
	d.set(detour.PhasePending, detour.ReasonRollingOut, message)
	return true
}

func (d *decider) rolloutMessage(done, again bool, waiting string) string {
	with, without := len(d.rollout.with), d.rollout.without
	message := fmt.Sprintf("rolling out %s %s (%d pods with it, %d still without)",
		d.target.Name(), d.target.addition(), with, without)
	if d.attached {
		message = fmt.Sprintf("attaching the traffic-agent to the pods of %s (%d pods with it, %d still without)",
			d.target.Name(), with, without)
	}
	switch why := workloads.StartFailure(d.pods); {
	case why != "":
		message += ": " + why
	case again:
		message += fmt.Sprintf(": pod %s was created without it, rolling out once more", d.missedPod.Name)
	case d.missedPod != nil:
		message += fmt.Sprintf(": pod %s was created without it, %s", d.missedPod.Name, d.whyMissed(d.missedPod))
	case done && without > 0 && !d.attached:
		message += ": waiting for the old pods to end"
	case waiting != "":
		message += ": " + waiting
	}
	return message
}

// waitForAgents decides that agents follow the intercept, and reports whether some of them have
// still to confirm that they do.
func (d *decider) waitForAgents() bool {
	d.follow()
	// Agents cannot have confirmed what is news to them.
	known := d.activate == nil || d.agents.active != nil && d.agents.active.Same(d.activate)
	confirmed, ready := 0, 0
	for n := range d.pods {
		p := &d.pods[n]
		if !workloads.PodReady(p) {
			continue
		}
		ready++
		if d.rollout.with[string(p.UID)] && (d.target.port.Port == 0 || known && d.agents.confirmed[string(p.UID)]) {
			confirmed++
		}
	}
	active := d.i.Status.Phase == detour.PhaseActive
	if !active {
		// The cache of pods may lag behind that of their workload: a pod that already serves must
		// not be forgotten.
		ready = max(ready, d.target.available())
	}
	d.i.Status.Agents = fmt.Sprintf("%d/%d", confirmed, ready)
	d.i.Status.Dropped = max(d.i.Status.Dropped, int64(d.agents.dropped))
	if confirmed >= ready || active {
		return false
	}
	message := fmt.Sprintf("waiting for the agents of %s (%d of %d)", d.target.Name(), confirmed, ready)
	if why := workloads.StartFailure(d.pods); why != "" {
		message += ": " + why
	}
	d.set(detour.PhasePending, detour.ReasonWaitingForAgents, message)
	return true
}

// giveBack decides about an intercept that ends or pauses. Where its container is replaced, the
// container runs again in every pod first: until then the laptop answers for the others.
func (d *decider) giveBack() {
	if d.target.container != "" {
		d.restore = true
		if !d.stillReplaced && d.waitForContainer() {
			return
		}
	}
	d.deactivate = true
	for n := range d.pods {
		p := &d.pods[n]
		// While the end of the intercept is news to the agents none of them has confirmed it.
		confirmed := d.agents.active == nil && d.agents.confirmed[string(p.UID)]
		if workloads.PodReady(p) && d.target.listens(p) && !confirmed {
			d.set(detour.PhaseSuspending, detour.ReasonWaitingForAgents, "giving the traffic back to the cluster")
			return
		}
	}
	d.set(detour.PhaseSuspended, detour.ReasonSuspended, "the cluster's pods answer")
}

// waitForContainer reports whether the replaced container has still to start in some pod.
func (d *decider) waitForContainer() bool {
	idle := 0
	for n := range d.pods {
		if inject.IsReplaced(&d.pods[n], d.target.container) {
			idle++
		}
	}
	if done, _ := d.target.rolledOut(); done && idle == 0 {
		return false
	}
	message := fmt.Sprintf("rolling out %s with its own container %s (%d pods still without)",
		d.target.Name(), d.target.container, idle)
	if why := workloads.StartFailure(d.pods); why != "" {
		message += ": " + why
	}
	d.set(detour.PhaseSuspending, detour.ReasonRollingOut, message)
	return true
}

// rollout counts a workload's pods.
type rollout struct {
	with    map[string]bool // UIDs of the pods that are as the intercept needs them
	serving map[string]bool // of these, the pods whose traffic the laptop gets
	without int             // the pods that are not, as far as they matter
}

func (w *workload) countPods(pods []corev1.Pod, attached bool) rollout {
	r := rollout{with: map[string]bool{}, serving: map[string]bool{}}
	for n := range pods {
		p := &pods[n]
		switch {
		case w.changed(p):
			r.with[string(p.UID)] = true
			// Where the app's container is replaced nobody else could answer.
			if w.container != "" || w.leftOut == "" || p.Labels[argo.HashLabel] != w.leftOut {
				r.serving[string(p.UID)] = true
			}
		case !attached || workloads.PodReady(p): // nothing is attached any more to a pod that is ending
			r.without++
		}
	}
	return r
}

// expired reports whether the time to live of an intercept is over.
func expired(i *detour.Intercept, now time.Time) bool {
	return i.Spec.TTL != nil && timeLeft(i, now) <= 0
}

// timeLeft returns how long an intercept has to live; 0 if it has no time to live.
func timeLeft(i *detour.Intercept, now time.Time) time.Duration {
	if i.Spec.TTL == nil {
		return 0
	}
	return i.CreationTimestamp.Add(i.Spec.TTL.Duration).Sub(now)
}

// finished reports whether an intercept is to be deleted. A replaced container has to run again
// first: until then the laptop does its work.
func finished(i *detour.Intercept, now time.Time) bool {
	restored := i.Status.Phase == detour.PhaseSuspended || i.Status.Phase == detour.PhaseRefused
	return expired(i, now) && (i.Spec.Mode != detour.ModeReplace || restored)
}

// shortName returns a name such as deployment/catalog.
func shortName(w *detour.WorkloadRef) string { return strings.ToLower(w.Kind) + "/" + w.Name }
