package intercept

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/workloads/argo"
)

// An intercept is active once the agents of all ready pods have confirmed it.
func TestDecideConfirmations(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	runDecisions(t, map[string]decisionTest{
		"all agents have the plan and follow nothing yet": {
			changes: []change{pending},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "0/2",
				message: "waiting for the agents of deployment/catalog (0 of 2)", activate: both,
				requeue: unsettledRecheck,
			},
		},
		"agents follow another laptop address": {
			changes: []change{phase(detour.PhasePending), func(f *facts) { f.agents.active.Address = "198.18.0.9" }},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "0/2",
				message: "waiting for the agents of deployment/catalog (0 of 2)", activate: both,
				requeue: unsettledRecheck,
			},
		},
		"one agent has confirmed": {
			changes: []change{phase(detour.PhasePending), unconfirmed("pod-2")},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "1/2",
				message: "waiting for the agents of deployment/catalog (1 of 2)", activate: both,
				requeue: unsettledRecheck,
			},
		},
		"all agents have confirmed": {
			changes: []change{phase(detour.PhasePending)},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
		"all ready agents have confirmed, but a pod that serves is not cached yet": {
			changes: []change{phase(detour.PhasePending), notReady(1)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "1/2",
				message: "waiting for the agents of deployment/catalog (1 of 2)", activate: both,
				requeue: unsettledRecheck,
			},
		},
		"an active intercept with a pod that is not ready": {
			changes: []change{notReady(1)},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "1/1", activate: both, requeue: settledRecheck,
			},
		},
		"an active intercept with an agent that has lost the manager": {
			changes: []change{unconfirmed("pod-2")},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "1/2", activate: both, requeue: settledRecheck,
			},
		},
		"an active intercept, and a new manager": {
			changes: []change{func(f *facts) { f.agents = agentFacts{} }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "0/2", activate: both, requeue: settledRecheck,
			},
		},
		"a workload without pods": {
			changes: []change{phase(detour.PhasePending), func(f *facts) {
				f.pods = nil
				o := f.target.Object.(*appsv1.Deployment)
				o.Spec.Replicas, o.Status = ptr(int32(0)), appsv1.DeploymentStatus{ObservedGeneration: 1}
			}},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "0/0", activate: []string{}, requeue: settledRecheck,
			},
		},
		"a session without addresses": {
			changes: []change{phase(detour.PhasePending), func(f *facts) { f.session.Status.Addresses = nil }},
			want:    want{phase: detour.PhasePending, requeue: unsettledRecheck},
		},
		"a personal intercept": {
			changes: []change{phase(detour.PhasePending), personal},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "2/2", activate: both,
				requeue: settledRecheck,
			},
		},
		"a wiretap": {
			changes: []change{phase(detour.PhasePending), mode(detour.ModeWiretap)},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "2/2", activate: both,
				requeue: settledRecheck,
				message: "deployment/catalog sends copies of all requests to alice@mac",
			},
		},
		"a blue-green Rollout whose preview has the agent too": {
			changes: []change{func(f *facts) {
				o := &argo.Rollout{Unstructured: argo.New(), Spec: argo.Spec{Replicas: ptr(int32(1))}}
				o.SetName("catalog")
				o.Status = argo.Status{AvailableReplicas: 2, ObservedGeneration: "0"}
				f.target.Kind, f.target.Object, f.target.leftOut = argo.Kind, o, "preview"
				f.pods[1].Labels = map[string]string{argo.HashLabel: "preview"}
			}},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "0/2", requeue: settledRecheck,
				message:  "rollout/catalog sends all requests to alice@mac",
				activate: []string{"pod-1"},
			},
		},
	})
}

// While the laptop does not respond, the app answers or clients get errors.
func TestDecideLaptopGone(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	runDecisions(t, map[string]decisionTest{
		"a laptop that is gone": {
			changes: []change{disconnected},
			want: want{
				phase: detour.PhaseLaptopGone, reason: detour.ReasonLaptopGone, deactivate: true,
				requeue: unsettledRecheck,
				message: "the laptop does not respond: the cluster's pods answer until it is back",
			},
		},
		"a laptop that is gone, with errors": {
			changes: []change{disconnected, onError},
			want: want{
				phase: detour.PhaseLaptopGone, reason: detour.ReasonLaptopGone, activate: both,
				requeue: unsettledRecheck,
				message: "the laptop does not respond: its traffic gets errors until it is back",
			},
		},
		"a laptop that is gone before its intercept began, with errors": {
			changes: []change{pending, disconnected, onError},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonLaptopGone, requeue: unsettledRecheck,
				message: "the laptop does not respond: the intercept begins when it is back",
			},
		},
		"a laptop that is gone, of a replaced container": {
			changes: []change{replacing, disconnected},
			want: want{
				phase: detour.PhaseLaptopGone, reason: detour.ReasonLaptopGone, activate: both,
				requeue: unsettledRecheck,
				message: "the laptop does not respond: nobody does the replaced container's work " +
					"until the laptop is back or its session is deleted",
			},
		},
		"a laptop that is back": {
			changes: []change{phase(detour.PhaseLaptopGone), func(f *facts) { f.agents.active = nil }},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "0/2",
				message: "waiting for the agents of deployment/catalog (0 of 2)", activate: both,
				requeue: unsettledRecheck,
			},
		},
	})
}

// A replaced container runs again before its intercept is over.
func TestDecideReplacedContainers(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	runDecisions(t, map[string]decisionTest{
		"a replaced container": {
			changes: []change{replacing},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "2/2", activate: both,
				requeue: settledRecheck,
				message: "container app of deployment/catalog does not run, alice@mac does its work",
			},
		},
		"a replaced container of a workload without a service": {
			changes: []change{replacingWorker, phase(detour.PhasePending)},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "2/2", requeue: settledRecheck,
				message: "container app of deployment/catalog does not run, alice@mac does its work",
			},
		},
		"a container that is being replaced": {
			changes: []change{replacing, pending, rollingOut, old(0)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: "rolling out deployment/catalog with an idle container in place of app " +
					"(1 pods with it, 1 still without)",
				activate: []string{"pod-2"}, // in this pod no app can answer
			},
		},
		"a replaced container that runs again in one pod": {
			changes: []change{replacing, without(1)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: "rolling out deployment/catalog with an idle container in place of app " +
					"(1 pods with it, 1 still without): pod pod-2 was created without it, rolling out once more",
				activate: []string{"pod-1"}, missed: "pod-2",
				annotate: `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900}],` +
					`"replaced":["app"],"restart":"2030-01-02T03:04:05Z"}`,
			},
		},
		"a replaced container that was left, with idle pods": {
			changes: []change{replacing, suspended},
			want: want{
				phase: detour.PhaseSuspending, reason: detour.ReasonRollingOut, restore: true,
				requeue: unsettledRecheck,
				message: "rolling out deployment/catalog with its own container app (2 pods still without)",
			},
		},
		"a replaced container that was left, and runs again": {
			changes: []change{replacing, suspended, func(f *facts) {
				plan := inject.Plan{Ports: []inject.Port{httpPort}}
				f.plan, f.pods = plan, []corev1.Pod{newPod("pod-1", plan), newPod("pod-2", plan)}
			}},
			want: want{
				phase: detour.PhaseSuspending, reason: detour.ReasonWaitingForAgents, restore: true, deactivate: true,
				message: "giving the traffic back to the cluster", requeue: unsettledRecheck,
			},
		},
		"a replaced container that was left, while another intercept replaces it": {
			changes: []change{replacing, suspended, func(f *facts) { f.stillReplaced, f.agents.active = true, nil }},
			want: want{
				phase: detour.PhaseSuspended, reason: detour.ReasonSuspended, restore: true, deactivate: true,
				message: "the cluster's pods answer", requeue: unsettledRecheck,
			},
		},
		"a replaced container whose time is over": {
			changes: []change{replacing, ttl(time.Second)},
			want: want{
				phase: detour.PhaseSuspending, reason: detour.ReasonRollingOut, restore: true,
				requeue: unsettledRecheck,
				message: "rolling out deployment/catalog with its own container app (2 pods still without)",
			},
		},
	})
}

// A suspended intercept is over when every agent has confirmed that.
func TestDecideSuspended(t *testing.T) {
	runDecisions(t, map[string]decisionTest{
		"suspended, and the agents do not know": {
			changes: []change{suspended},
			want: want{
				phase: detour.PhaseSuspending, reason: detour.ReasonWaitingForAgents, deactivate: true,
				message: "giving the traffic back to the cluster", requeue: unsettledRecheck,
			},
		},
		"suspended, and one agent has not confirmed": {
			changes: []change{suspended, unconfirmed("pod-2"), func(f *facts) { f.agents.active = nil }},
			want: want{
				phase: detour.PhaseSuspending, reason: detour.ReasonWaitingForAgents, deactivate: true,
				message: "giving the traffic back to the cluster", requeue: unsettledRecheck,
			},
		},
		"suspended, and all agents have confirmed": {
			changes: []change{suspended, func(f *facts) { f.agents.active = nil }},
			want: want{
				phase: detour.PhaseSuspended, reason: detour.ReasonSuspended, deactivate: true,
				message: "the cluster's pods answer", requeue: unsettledRecheck,
			},
		},
		"suspended, and the unconfirmed pod is not ready": {
			changes: []change{suspended, unconfirmed("pod-2"), notReady(1), func(f *facts) { f.agents.active = nil }},
			want: want{
				phase: detour.PhaseSuspended, reason: detour.ReasonSuspended, deactivate: true,
				message: "the cluster's pods answer", requeue: unsettledRecheck,
			},
		},
		"suspended, and the pods have no agent": {
			changes: []change{suspended, old(0), old(1)},
			want: want{
				phase: detour.PhaseSuspended, reason: detour.ReasonSuspended, deactivate: true,
				message: "the cluster's pods answer", requeue: unsettledRecheck,
			},
		},
		"suspended, and the agents follow another manager": {
			changes: []change{suspended, func(f *facts) { f.target.authority = []byte("another") }},
			want: want{
				phase: detour.PhaseSuspended, reason: detour.ReasonSuspended, deactivate: true,
				message: "the cluster's pods answer", requeue: unsettledRecheck,
			},
		},
		"suspended with a Secret that the agents do not have": {
			changes: []change{suspended, func(f *facts) { f.intercept.Spec.TLS = &detour.TLS{Secret: "web-tls"} }},
			want: want{
				phase: detour.PhaseSuspending, reason: detour.ReasonWaitingForAgents, deactivate: true,
				message: "giving the traffic back to the cluster", requeue: unsettledRecheck,
			},
		},
	})
}

// An intercept is looked at again when its time to live is over.
func TestDecideTimesToLive(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	runDecisions(t, map[string]decisionTest{
		"a time to live that ends before the next pass": {
			changes: []change{ttl(time.Minute + 10*time.Second)},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: 10*time.Second + ttlSlack,
			},
		},
		"a time to live that ends later": {
			changes: []change{ttl(time.Hour)},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
	})
}
