package intercept

import (
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
)

// A workload is rolled out until its pods have the agent.
func TestDecideRollouts(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	runDecisions(t, map[string]decisionTest{
		"a workload without the agent": {
			changes: []change{uncovered},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, message: rolling,
				annotate: bothPods, requeue: unsettledRecheck,
			},
		},
		"a workload without the agent, and several ports": {
			changes: []change{uncovered, func(f *facts) {
				f.siblings = []inject.Port{{Container: "app", Port: 9090, Via: inject.ViaNftables, AgentPort: 9901}}
			}},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, message: rolling,
				requeue: unsettledRecheck,
				annotate: `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900},` +
					`{"container":"app","port":9090,"via":"nftables","agentPort":9901}]}`,
			},
		},
		"a workload without the agent, of a laptop that is gone": {
			changes: []change{uncovered, disconnected},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, message: rolling,
				annotate: bothPods, requeue: unsettledRecheck,
			},
		},
		"an active intercept whose annotation was removed": {
			changes: []change{uncovered, phase(detour.PhaseActive)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, message: rolling,
				annotate: bothPods, requeue: unsettledRecheck,
			},
		},
		"a container that is to be replaced": {
			changes: []change{replacing, pending, func(f *facts) { f.plan = inject.Plan{Ports: f.plan.Ports} }},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, requeue: unsettledRecheck,
				message: "rolling out deployment/catalog with an idle container in place of app",
				annotate: `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900}],` +
					`"replaced":["app"]}`,
			},
		},
		"a rollout that has just begun": {
			changes: []change{pending, rollingOut, old(0), old(1)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (0 pods with it, 2 still without)",
			},
		},
		"a rollout whose new pods are blocked": {
			changes: []change{pending, rollingOut, old(0), func(f *facts) {
				f.target.Object.(*appsv1.Deployment).Status.Conditions = []appsv1.DeploymentCondition{{
					Type: appsv1.DeploymentReplicaFailure, Status: corev1.ConditionTrue, Message: "exceeded quota",
				}}
			}},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): exceeded quota",
			},
		},
		"a rollout whose new pod does not start": {
			changes: []change{pending, rollingOut, old(0), func(f *facts) {
				f.pods[1].Status.ContainerStatuses = []corev1.ContainerStatus{{
					Name: "app",
					State: corev1.ContainerState{
						Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"},
					},
				}}
			}},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): " +
					"container app of pod pod-2 waits: ImagePullBackOff no such image",
			},
		},
		"a rollout whose old pods are ending": {
			changes: []change{pending, func(f *facts) {
				f.pods = append(f.pods, barePod("pod-3"))
				f.pods[2].DeletionTimestamp = &metav1.Time{Time: now}
			}},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/3", requeue: unsettledRecheck,
				message: rolling + " (2 pods with it, 1 still without): waiting for the old pods to end",
			},
		},
		"a rollout that goes on though all pods have the agent": {
			changes: []change{pending, rollingOut},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (2 pods with it, 0 still without)",
			},
		},
		"another rollout of an active intercept": {
			changes: []change{rollingOut},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
	})
}

// A rollout is repeated for a pod that was created without the webhook.
func TestDecideMissedPods(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	runDecisions(t, map[string]decisionTest{
		"a pod that was created without the webhook": {
			changes: []change{pending, without(1)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): " +
					"pod pod-2 was created without it, rolling out once more",
				annotate: `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900}],` +
					`"restart":"2030-01-02T03:04:05Z"}`,
				missed: "pod-2",
			},
		},
		"a pod without the webhook, of a manager that has just started": {
			changes: []change{pending, without(1), func(f *facts) { f.started = now.Add(-time.Second) }},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): " +
					"pod pod-2 was created without it, rolling out once more",
			},
		},
		"a pod without the webhook, shortly after a repeated rollout": {
			changes: []change{pending, without(1), restarted(30 * time.Second)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): " +
					"pod pod-2 was created without it, rolling out once more",
			},
		},
		"a pod without the webhook, pending for too long": {
			changes: []change{
				pending, without(1), restarted(2 * time.Minute), created(time.Hour),
				func(f *facts) { f.webhookCalled = now.Add(-time.Hour) },
			},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): " +
					"pod pod-2 was created without it, because the " +
					"API server did not reach the webhook: let it reach port 9443 of the traffic-manager's pod",
			},
		},
		"a pod that the webhook failed, pending for too long": {
			changes: []change{pending, without(1), restarted(2 * time.Minute), created(time.Hour)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): pod pod-2 was created without it, " +
					"the traffic-manager's log says why",
			},
		},
		"a pod of an active intercept without the webhook": {
			changes: []change{without(1), created(time.Hour), follows("pod-1")},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "1/2", requeue: settledRecheck,
				message: flowing + ", except pod pod-2, " +
					"which was created without the traffic-agent and answers itself",
				activate: []string{"pod-1"},
				annotate: `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900}],` +
					`"restart":"2030-01-02T03:04:05Z"}`,
				missed: "pod-2",
			},
		},
		"a pod of an active intercept without the webhook, after a repeated rollout": {
			changes: []change{without(1), created(time.Hour), restarted(2 * time.Minute), follows("pod-1")},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "1/2", requeue: settledRecheck,
				message: flowing + ", except pod pod-2, " +
					"which was created without the traffic-agent and answers itself",
				activate: []string{"pod-1"},
			},
		},
		"an old pod of an active intercept": {
			changes: []change{old(1), follows("pod-1")},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing, agents: "1/2",
				activate: []string{"pod-1"}, requeue: settledRecheck,
			},
		},

		"a pod of an active intercept is new to the agents": {
			changes: []change{follows("pod-1")},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "0/2", activate: both, requeue: settledRecheck,
			},
		},
	})
}

// With --attach running pods get the agent.
func TestDecideAttachments(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	runDecisions(t, map[string]decisionTest{
		"pods to attach to": {
			changes: []change{attaching},
			want:    want{phase: detour.PhasePending, attach: both, requeue: unsettledRecheck},
		},
		"pods to attach to, of which one is ending": {
			changes: []change{attaching, func(f *facts) { f.pods[1].DeletionTimestamp = &metav1.Time{Time: now} }},
			want:    want{phase: detour.PhasePending, attach: []string{"pod-1"}, requeue: unsettledRecheck},
		},
		"pods to attach to, of a laptop that is gone": {
			changes: []change{attaching, disconnected},
			want: want{
				phase: detour.PhaseLaptopGone, reason: detour.ReasonLaptopGone, deactivate: true,
				requeue: unsettledRecheck,
				message: "the laptop does not respond: the cluster's pods answer until it is back",
			},
		},
		"an agent was attached a moment ago": {
			changes: []change{attaching, tried(nil)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: "attaching the traffic-agent to the pods of deployment/catalog " +
					"(0 pods with it, 2 still without)",
			},
		},
		"the cluster does not allow attaching": {
			changes: []change{attaching, tried(&Refusal{Reason: detour.ReasonUnsupported, Message: "not allowed"})},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, message: "not allowed",
				deactivate: true, requeue: settledRecheck,
			},
		},
		"agents are attached to all pods": {
			changes: []change{attaching, attached(0), attached(1), func(f *facts) {
				f.agents = activeFacts().agents
			}},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
		"a new pod of an active intercept to which nothing can be attached": {
			changes: []change{
				attaching, attached(0), phase(detour.PhaseActive),
				tried(&Refusal{Reason: detour.ReasonUnsupported, Message: "not allowed"}),
				func(f *facts) {
					f.agents = agentFacts{active: following("pod-1"), confirmed: map[string]bool{"pod-1": true}}
				},
			},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive,
				message: flowing + ", except a new pod: not allowed",
				agents:  "1/2", activate: []string{"pod-1"}, requeue: settledRecheck,
			},
		},
		"attaching to a UDP port": {
			changes: []change{attaching, func(f *facts) { f.target.port = udpPort }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck,
				message: "port 5353 of deployment/catalog is a UDP port, " +
					"and an attached agent can take over TCP ports only: " +
					"leave out --attach, so that new pods with the agent are rolled out",
			},
		},
		"attaching although new pods get the agent": {
			changes: []change{func(f *facts) { f.intercept.Spec.Attach, f.target.attach = true, true }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
	})
}
