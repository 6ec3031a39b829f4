package intercept

import (
	"errors"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/route/spec"
	"github.com/detour-dev/detour/pkg/traffic/manager/agents"
	"github.com/detour-dev/detour/pkg/workloads"
	"github.com/detour-dev/detour/pkg/workloads/argo"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// now is when all decisions of these tests are made.
var now = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

var (
	httpPort = inject.Port{Container: "app", Port: 8080, Via: inject.ViaNftables, AgentPort: 9900}
	udpPort  = inject.Port{Container: "app", Port: 5353, Via: inject.ViaNftables, AgentPort: 9900, Protocol: "UDP"}
	ca       = []byte("authority")
)

// change is a change of the facts, which a table's row combines.
type change func(*facts)

// activeFacts are those of an intercept of deployment/catalog with two pods: its laptop is connected,
// both agents follow the intercept and have confirmed it, and the phase is Active.
func activeFacts() facts {
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "catalog", Namespace: "shop", Generation: 1},
		Spec:       appsv1.DeploymentSpec{Replicas: ptr(int32(2))},
		Status: appsv1.DeploymentStatus{
			ObservedGeneration: 1, Replicas: 2, UpdatedReplicas: 2, AvailableReplicas: 2,
		},
	}
	deployment.Spec.Template.Spec.Containers = []corev1.Container{{Name: "app"}}
	plan := inject.Plan{Ports: []inject.Port{httpPort}}
	return facts{
		intercept: &detour.Intercept{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: "catalog-x", UID: "intercept-1", Generation: 1,
				CreationTimestamp: metav1.NewTime(now.Add(-time.Minute)),
			},
			Spec: detour.InterceptSpec{
				Session: "alice", Service: "catalog", Mode: detour.ModeIntercept, OnFailure: detour.OnFailureFallback,
			},
			Status: detour.InterceptStatus{Phase: detour.PhaseActive},
		},
		session: &detour.Session{
			Spec:   detour.SessionSpec{User: "alice", Host: "mac"},
			Status: detour.SessionStatus{Connected: true, Addresses: []string{"198.18.0.2", "fd00::2"}},
		},
		target: &workload{
			Workload: &workloads.Workload{Kind: "Deployment", Object: deployment, Template: &deployment.Spec.Template},
			port:     httpPort, servicePort: 80, authority: ca,
		},
		plan: plan,
		pods: []corev1.Pod{newPod("pod-1", plan), newPod("pod-2", plan)},
		agents: agentFacts{
			active: following("pod-1", "pod-2"), confirmed: map[string]bool{"pod-1": true, "pod-2": true},
		},
		started: now.Add(-time.Hour), webhookCalled: now,
	}
}

// follows sets the pods whose traffic agents send to the laptop.
func follows(pods ...string) change { return func(f *facts) { f.agents.active = following(pods...) } }

// newPod is a ready pod as the webhook makes it by a plan.
func newPod(name string, plan inject.Plan) corev1.Pod {
	p := barePod(name)
	p.Annotations = map[string]string{inject.Annotation: plan.String()}
	if err := inject.Mutate(&p, plan, inject.Options{CA: ca}); err != nil {
		panic(err)
	}
	return p
}

// barePod is a ready pod of the owner's template.
func barePod(name string) corev1.Pod {
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID(name), CreationTimestamp: metav1.NewTime(now.Add(-time.Minute)),
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
		},
	}
}

// following is the active intercept of some pods, as decide makes it of activeFacts.
func following(pods ...string) *agents.ActiveIntercept {
	i := &agents.ActiveIntercept{Port: 8080, Address: "198.18.0.2", Laptop: "alice@mac", Pods: map[string]bool{}}
	for _, p := range pods {
		i.Pods[p] = true
	}
	return i
}

func phase(p detour.InterceptPhase) change { return func(f *facts) { f.intercept.Status.Phase = p } }

// pending is an intercept that agents do not follow yet.
func pending(f *facts) {
	f.intercept.Status.Phase, f.agents.active = detour.PhasePending, nil
}

func suspended(f *facts) { f.intercept.Spec.Suspend = true }

func disconnected(f *facts) { f.session.Status.Connected = false }

func onError(f *facts) { f.intercept.Spec.OnFailure = detour.OnFailureError }

func personal(f *facts) {
	f.intercept.Spec.Match = &detour.Match{
		Headers: []detour.ValueMatch{{Name: "x-dev", Type: detour.MatchExact, Value: "alice"}},
	}
	if f.agents.active != nil {
		f.agents.active.Match = spec.FromAPI(f.intercept.Spec.Match)
	}
}

func mode(m detour.Mode) change { return func(f *facts) { f.intercept.Spec.Mode = m } }

func ttl(d time.Duration) change {
	return func(f *facts) { f.intercept.Spec.TTL = &metav1.Duration{Duration: d} }
}

// uncovered is a workload whose pods have no agent and whose template asks for none.
func uncovered(f *facts) {
	pending(f)
	f.plan, f.pods = inject.Plan{}, []corev1.Pod{barePod("pod-1"), barePod("pod-2")}
	f.agents.confirmed = map[string]bool{}
}

// attaching is an intercept that puts agents into running pods which have none.
func attaching(f *facts) {
	uncovered(f)
	f.intercept.Spec.Attach, f.target.attach = true, true
}

// attached makes the n-th pod one to which an agent is attached.
func attached(n int) change {
	return func(f *facts) {
		p := &f.pods[n]
		p.Spec.Volumes = []corev1.Volume{{
			Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
				Sources: []corev1.VolumeProjection{{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"}}},
			}},
		}}
		container, err := inject.Attach(p, []int32{8080}, inject.Options{CA: ca})
		if err != nil {
			panic(err)
		}
		p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, *container)
	}
}

// tried records that attaching was tried, and what kept it from success.
func tried(refusal *Refusal) change {
	return func(f *facts) { f.attachTried, f.attachRefusal = true, refusal }
}

// replacing is an active intercept that replaces the app's container, with its traffic.
func replacing(f *facts) {
	f.intercept.Spec.Mode, f.target.container = detour.ModeReplace, "app"
	f.plan = f.plan.Replacing("app")
	f.pods = []corev1.Pod{newPod("pod-1", f.plan), newPod("pod-2", f.plan)}
}

// replacingWorker replaces the container of a workload that no service leads to.
func replacingWorker(f *facts) {
	f.target.port, f.target.servicePort = inject.Port{}, 0
	f.plan, f.agents.active = inject.Plan{}, nil
	replacing(f)
}

// notReady makes the n-th pod one that does not serve yet.
func notReady(n int) change { return func(f *facts) { f.pods[n].Status.Conditions = nil } }

// without makes the n-th pod one that was created by the newest template but without the webhook.
func without(n int) change {
	return func(f *facts) {
		p := barePod(f.pods[n].Name)
		p.Annotations = map[string]string{inject.Annotation: f.plan.String()}
		f.pods[n] = p
	}
}

// old makes the n-th pod one of an older template.
func old(n int) change { return func(f *facts) { f.pods[n] = barePod(f.pods[n].Name) } }

// rollingOut is a workload that is not rolled out yet.
func rollingOut(f *facts) {
	f.target.Object.(*appsv1.Deployment).Status.UpdatedReplicas = 1
}

func unconfirmed(pod string) change { return func(f *facts) { f.agents.confirmed[pod] = false } }

func restarted(ago time.Duration) change {
	return func(f *facts) {
		f.plan.Restart = now.Add(-ago).UTC().Format(time.RFC3339)
		for n := range f.pods {
			if f.pods[n].Annotations != nil {
				f.pods[n].Annotations[inject.Annotation] = f.plan.String()
			}
		}
	}
}

// created sets how long ago the intercept was created.
func created(ago time.Duration) change {
	return func(f *facts) { f.intercept.CreationTimestamp = metav1.NewTime(now.Add(-ago)) }
}

// other adds another intercept of the port, which is active.
func other(session string) change {
	return func(f *facts) {
		f.others = append(f.others, detour.Intercept{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "shop", Name: "catalog-y", UID: "intercept-2",
				CreationTimestamp: metav1.NewTime(now.Add(-time.Hour)),
			},
			Spec: detour.InterceptSpec{Session: session, Service: "catalog", Mode: detour.ModeIntercept},
			Status: detour.InterceptStatus{
				Phase: detour.PhaseActive, Laptop: "bob@mac", ContainerPort: 8080,
				Workload: &detour.WorkloadRef{Kind: "Deployment", Name: "catalog"},
			},
		})
	}
}

// want is what a row expects. Agents are to follow the intercept on the pods in activate; nil means that
// nothing is activated.
type want struct {
	phase      detour.InterceptPhase
	reason     string
	message    string
	agents     string
	activate   []string
	deactivate bool
	annotate   string // the plan, "none" for an empty one; empty: the workload is left alone
	missed     string
	attach     []string
	restore    bool
	requeue    time.Duration
}

const (
	rolling  = "rolling out deployment/catalog with the traffic-agent"
	flowing  = "deployment/catalog sends all requests to alice@mac"
	bothPods = `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900}]}`
)

func TestDecide(t *testing.T) {
	both := []string{"pod-1", "pod-2"}
	for name, c := range map[string]struct {
		changes []change
		want    want
	}{
		// What cannot be intercepted.
		"a session that does not exist": {
			changes: []change{func(f *facts) { f.session, f.target = nil, nil }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonSessionNotFound,
				message: "session alice does not exist: connect again", deactivate: true, requeue: settledRecheck,
			},
		},
		"a target that cannot be intercepted": {
			changes: []change{func(f *facts) {
				f.target = nil
				f.targetRefusal = &Refusal{Reason: detour.ReasonServiceNotFound, Message: "service catalog does not exist"}
			}},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonServiceNotFound,
				message: "service catalog does not exist", deactivate: true, requeue: settledRecheck,
			},
		},
		"a match that does not compile": {
			changes: []change{pending, func(f *facts) {
				f.intercept.Spec.Match = &detour.Match{
					Headers: []detour.ValueMatch{{Name: "x-dev", Type: detour.MatchRegex, Value: "("}},
				}
			}},
			want: want{phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck},
		},
		"a port that another session has": {
			changes: []change{pending, other("bob")},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonPortTaken, deactivate: true, requeue: settledRecheck,
				message: "port 8080 of deployment/catalog is intercepted by bob@mac since 2030-01-02 02:04:05 UTC " +
					"(intercept catalog-y): ask them to leave it, or take only your requests with --me or --header",
			},
		},
		"a port that another intercept of the session has": {
			changes: []change{pending, other("alice")},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonPortTaken, deactivate: true, requeue: settledRecheck,
				message: "port 8080 of deployment/catalog is intercepted by you since 2030-01-02 02:04:05 UTC " +
					"(intercept catalog-y): run `detour leave catalog-y` first",
			},
		},
		"a port whose global intercept another session has, personal": {
			changes: []change{pending, other("bob"), personal},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "0/2",
				message:  "waiting for the agents of deployment/catalog (0 of 2)",
				activate: both, requeue: unsettledRecheck,
			},
		},
		"a port that a suspended intercept had": {
			changes: []change{other("bob"), func(f *facts) { f.others[0].Spec.Suspend = true }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
		"a damaged annotation": {
			changes: []change{func(f *facts) { f.planErr = errors.New("annotation detour.dev/agent: no port") }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck,
				message: "deployment/catalog: annotation detour.dev/agent: no port: remove it and try again",
			},
		},
		"a match on a UDP port": {
			changes: []change{pending, personal, func(f *facts) { f.target.port = udpPort }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck,
				message: "port 5353 of deployment/catalog is a UDP port, which has no requests to match: " +
					"intercept the whole port, without conditions",
			},
		},
		"a wiretap of a UDP port": {
			changes: []change{pending, mode(detour.ModeWiretap), func(f *facts) { f.target.port = udpPort }},
			want:    want{phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck},
		},
		"a Secret that the pods do not use": {
			changes: []change{pending, personal, func(f *facts) {
				f.intercept.Spec.TLS = &detour.TLS{Secret: "other"}
			}},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonTLS, deactivate: true, requeue: settledRecheck,
				message: "the pods of deployment/catalog do not use Secret other: " +
					"name one that they use, with their certificate, by --tls-secret (the pods use none)",
			},
		},
		"a match on a port that declares TLS": {
			changes: []change{pending, personal, func(f *facts) { f.target.appProtocol = "https" }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonTLS, deactivate: true, requeue: settledRecheck,
				message: "port 8080 of deployment/catalog speaks TLS (its appProtocol is https): to select requests, " +
					"name the Secret with its certificate by --tls-secret NAME (the pods use none), " +
					"or intercept the whole port, without conditions",
			},
		},
		"all of a port that declares TLS": {
			changes: []change{func(f *facts) { f.target.appProtocol = "https" }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
		"a match on a port that turns out to speak TLS": {
			changes: []change{pending, personal, func(f *facts) { f.agents.portState = &agentv1.PortState{Port: 8080, Tls: true} }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonTLS, deactivate: true, requeue: settledRecheck,
				message: "port 8080 of deployment/catalog speaks TLS (the agent tried it): to select requests, " +
					"name the Secret with its certificate by --tls-secret NAME (the pods use none), " +
					"or intercept the whole port, without conditions",
			},
		},
		"a match on a port whose certificate is of no use": {
			changes: []change{pending, personal, func(f *facts) {
				f.agents.portState = &agentv1.PortState{Port: 8080, Tls: true, Problem: "the certificate has expired"}
			}},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonTLS, deactivate: true, requeue: settledRecheck,
				message: "the agent cannot read the requests to port 8080 of deployment/catalog: the certificate has expired",
			},
		},
		"all of a port that turns out to speak TLS": {
			changes: []change{func(f *facts) { f.agents.portState = &agentv1.PortState{Port: 8080, Tls: true} }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing,
				agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},

		// An environment only.
		"ingest": {
			changes: []change{pending, mode(detour.ModeIngest), func(f *facts) { f.target.container = "app" }},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, requeue: settledRecheck,
				message: "alice@mac has the environment of container app of deployment/catalog",
			},
		},
		"ingest, suspended": {
			changes: []change{mode(detour.ModeIngest), suspended, func(f *facts) { f.target.container = "app" }},
			want: want{
				phase: detour.PhaseSuspended, reason: detour.ReasonSuspended, requeue: unsettledRecheck,
				message: "nothing has changed in the cluster",
			},
		},
		"ingest, while another session has the port": {
			changes: []change{pending, mode(detour.ModeIngest), other("bob"), func(f *facts) { f.target.container = "app" }},
			want:    want{phase: detour.PhaseActive, reason: detour.ReasonActive, requeue: settledRecheck},
		},

		// Getting the agent into the pods.
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
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, message: rolling, requeue: unsettledRecheck,
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
				message:  "rolling out deployment/catalog with an idle container in place of app",
				annotate: `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900}],"replaced":["app"]}`,
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
				f.pods[1].Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "app", State: corev1.ContainerState{
					Waiting: &corev1.ContainerStateWaiting{Reason: "ImagePullBackOff", Message: "no such image"},
				}}}
			}},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): container app of pod pod-2 waits: ImagePullBackOff no such image",
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

		// Pods that the webhook missed.
		"a pod that was created without the webhook": {
			changes: []change{pending, without(1)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): pod pod-2 was created without it, rolling out once more",
				annotate: `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900}],` +
					`"restart":"2030-01-02T03:04:05Z"}`,
				missed: "pod-2",
			},
		},
		"a pod without the webhook, of a manager that has just started": {
			changes: []change{pending, without(1), func(f *facts) { f.started = now.Add(-time.Second) }},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): pod pod-2 was created without it, rolling out once more",
			},
		},
		"a pod without the webhook, shortly after a repeated rollout": {
			changes: []change{pending, without(1), restarted(30 * time.Second)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): pod pod-2 was created without it, rolling out once more",
			},
		},
		"a pod without the webhook, pending for too long": {
			changes: []change{
				pending, without(1), restarted(2 * time.Minute), created(time.Hour),
				func(f *facts) { f.webhookCalled = now.Add(-time.Hour) },
			},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: rolling + " (1 pods with it, 1 still without): pod pod-2 was created without it, because the " +
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
				message:  flowing + ", except pod pod-2, which was created without the traffic-agent and answers itself",
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
				message:  flowing + ", except pod pod-2, which was created without the traffic-agent and answers itself",
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

		// The agents confirm.
		"all agents have the plan and follow nothing yet": {
			changes: []change{pending},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "0/2",
				message: "waiting for the agents of deployment/catalog (0 of 2)", activate: both, requeue: unsettledRecheck,
			},
		},
		"agents follow another laptop address": {
			changes: []change{phase(detour.PhasePending), func(f *facts) { f.agents.active.Address = "198.18.0.9" }},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "0/2",
				message: "waiting for the agents of deployment/catalog (0 of 2)", activate: both, requeue: unsettledRecheck,
			},
		},
		"one agent has confirmed": {
			changes: []change{phase(detour.PhasePending), unconfirmed("pod-2")},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "1/2",
				message: "waiting for the agents of deployment/catalog (1 of 2)", activate: both, requeue: unsettledRecheck,
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
				message: "waiting for the agents of deployment/catalog (1 of 2)", activate: both, requeue: unsettledRecheck,
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
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "2/2", activate: both, requeue: settledRecheck,
			},
		},
		"a wiretap": {
			changes: []change{phase(detour.PhasePending), mode(detour.ModeWiretap)},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "2/2", activate: both, requeue: settledRecheck,
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

		// Attaching to running pods.
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
				phase: detour.PhaseLaptopGone, reason: detour.ReasonLaptopGone, deactivate: true, requeue: unsettledRecheck,
				message: "the laptop does not respond: the cluster's pods answer until it is back",
			},
		},
		"an agent was attached a moment ago": {
			changes: []change{attaching, tried(nil)},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonRollingOut, agents: "0/2", requeue: unsettledRecheck,
				message: "attaching the traffic-agent to the pods of deployment/catalog (0 pods with it, 2 still without)",
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
				phase: detour.PhaseActive, reason: detour.ReasonActive, message: flowing + ", except a new pod: not allowed",
				agents: "1/2", activate: []string{"pod-1"}, requeue: settledRecheck,
			},
		},
		"attaching to a UDP port": {
			changes: []change{attaching, func(f *facts) { f.target.port = udpPort }},
			want: want{
				phase: detour.PhaseRefused, reason: detour.ReasonUnsupported, deactivate: true, requeue: settledRecheck,
				message: "port 5353 of deployment/catalog is a UDP port, and an attached agent can take over TCP ports only: " +
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

		// The laptop does not respond.
		"a laptop that is gone": {
			changes: []change{disconnected},
			want: want{
				phase: detour.PhaseLaptopGone, reason: detour.ReasonLaptopGone, deactivate: true, requeue: unsettledRecheck,
				message: "the laptop does not respond: the cluster's pods answer until it is back",
			},
		},
		"a laptop that is gone, with errors": {
			changes: []change{disconnected, onError},
			want: want{
				phase: detour.PhaseLaptopGone, reason: detour.ReasonLaptopGone, activate: both, requeue: unsettledRecheck,
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
				phase: detour.PhaseLaptopGone, reason: detour.ReasonLaptopGone, activate: both, requeue: unsettledRecheck,
				message: "the laptop does not respond: nobody does the replaced container's work " +
					"until the laptop is back or its session is deleted",
			},
		},
		"a laptop that is back": {
			changes: []change{phase(detour.PhaseLaptopGone), func(f *facts) { f.agents.active = nil }},
			want: want{
				phase: detour.PhasePending, reason: detour.ReasonWaitingForAgents, agents: "0/2",
				message: "waiting for the agents of deployment/catalog (0 of 2)", activate: both, requeue: unsettledRecheck,
			},
		},

		// Replaced containers.
		"a replaced container": {
			changes: []change{replacing},
			want: want{
				phase: detour.PhaseActive, reason: detour.ReasonActive, agents: "2/2", activate: both, requeue: settledRecheck,
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
				phase: detour.PhaseSuspending, reason: detour.ReasonRollingOut, restore: true, requeue: unsettledRecheck,
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
				phase: detour.PhaseSuspending, reason: detour.ReasonRollingOut, restore: true, requeue: unsettledRecheck,
				message: "rolling out deployment/catalog with its own container app (2 pods still without)",
			},
		},

		// Giving the traffic back.
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

		// Times to live.
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
	} {
		t.Run(name, func(t *testing.T) {
			f := activeFacts()
			for _, change := range c.changes {
				change(&f)
			}
			before := f.intercept.DeepCopy()
			d := decide(f, now)
			require.Equal(t, before, f.intercept, "the facts are not changed")
			checkDecision(t, c.want, d)
		})
	}
}

func checkDecision(t *testing.T, w want, d decision) {
	t.Helper()
	assert.Equal(t, w.phase, d.status.Phase)
	assert.Equal(t, w.requeue, d.requeue)
	assert.Equal(t, w.agents, d.status.Agents)
	assert.Equal(t, w.deactivate, d.deactivate)
	assert.Equal(t, w.restore, d.restore)
	assert.Equal(t, w.missed, d.missed)
	if w.activate == nil {
		assert.Nil(t, d.activate)
	} else if assert.NotNil(t, d.activate) {
		assert.Equal(t, w.activate, append([]string{}, slices.Sorted(maps.Keys(d.activate.Pods))...))
	}
	annotate := ""
	if d.annotate != nil {
		annotate = d.annotate.String()
	}
	assert.Equal(t, w.annotate, annotate)
	var attach []string
	if d.attach != nil {
		for _, key := range d.attach.pods {
			attach = append(attach, key.Name)
		}
	}
	assert.Equal(t, w.attach, attach)
	ready := meta.FindStatusCondition(d.status.Conditions, detour.ConditionReady)
	if w.reason == "" {
		require.Nil(t, ready)
		return
	}
	require.NotNil(t, ready)
	assert.Equal(t, w.reason, ready.Reason)
	assert.Equal(t, w.reason == detour.ReasonActive, ready.Status == metav1.ConditionTrue)
	if w.message != "" {
		assert.Equal(t, w.message, ready.Message)
	}
}

// What agents follow has everything that they need to know.
func TestDecideWhatAgentsFollow(t *testing.T) {
	for name, c := range map[string]struct {
		changes []change
		want    func(*agents.ActiveIntercept)
	}{
		"everything": {want: func(*agents.ActiveIntercept) {}},
		"errors":     {changes: []change{onError}, want: func(i *agents.ActiveIntercept) { i.ErrorOnFailure = true }},
		"a wiretap":  {changes: []change{mode(detour.ModeWiretap)}, want: func(i *agents.ActiveIntercept) { i.Wiretap = true }},
		"replaced":   {changes: []change{replacing}, want: func(i *agents.ActiveIntercept) { i.ErrorOnFailure = true }},
		"personal": {changes: []change{personal}, want: func(i *agents.ActiveIntercept) {
			i.Match = &agentv1.Match{Headers: []*agentv1.ValueMatch{
				{Name: "x-dev", Type: agentv1.MatchType_MATCH_TYPE_EXACT, Value: "alice"},
			}}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			f := activeFacts()
			for _, change := range c.changes {
				change(&f)
			}
			want := following("pod-1", "pod-2")
			c.want(want)
			got := decide(f, now).activate
			require.NotNil(t, got)
			assert.True(t, want.Same(got), "%v", got)
			assert.Equal(t, want.Laptop, got.Laptop)
			assert.Equal(t, want.Wiretap, got.Wiretap)
			assert.Equal(t, want.ErrorOnFailure, got.ErrorOnFailure)
		})
	}
}

// The status shows what was found out even if the intercept is refused later on.
func TestDecideFillsTheStatusIn(t *testing.T) {
	f := activeFacts()
	other("bob")(&f)
	pending(&f)
	status := decide(f, now).status
	assert.Equal(t, "alice@mac", status.Laptop)
	assert.Equal(t, &detour.WorkloadRef{Kind: "Deployment", Name: "catalog"}, status.Workload)
	assert.Equal(t, int32(80), status.ServicePort)
	assert.Equal(t, int32(8080), status.ContainerPort)
	assert.Equal(t, inject.ViaNftables, status.Redirect)
	assert.NotEmpty(t, status.Requests)
}

// An attached agent serves the ports of the session's other intercepts too, as far as it can.
func TestDecideWhichPortsToAttach(t *testing.T) {
	f := activeFacts()
	attaching(&f)
	f.siblings = []inject.Port{{Port: 9090}, {Port: 5353, Protocol: "UDP"}, {Port: 8443, Secret: "web-tls"}}
	d := decide(f, now)
	require.NotNil(t, d.attach)
	assert.Equal(t, []inject.Port{httpPort, {Port: 9090}}, d.attach.ports)
	assert.Equal(t, inject.ViaAttach, d.status.Redirect)
}

// A wiretap's count of dropped copies never goes down, though a new manager starts to count anew.
func TestDecideDroppedCopies(t *testing.T) {
	f := activeFacts()
	f.intercept.Status.Dropped, f.agents.dropped = 7, 3
	assert.Equal(t, int64(7), decide(f, now).status.Dropped)
	f.agents.dropped = 9
	assert.Equal(t, int64(9), decide(f, now).status.Dropped)
}

// An intercept is deleted when its time to live is over, but a replaced container runs again first.
func TestFinished(t *testing.T) {
	for name, c := range map[string]struct {
		changes []change
		want    bool
	}{
		"no time to live":               {want: false},
		"time left":                     {changes: []change{ttl(time.Hour)}, want: false},
		"expired":                       {changes: []change{ttl(time.Minute)}, want: true},
		"expired, replaced":             {changes: []change{ttl(time.Minute), replacing}, want: false},
		"expired, replaced, suspended":  {changes: []change{ttl(time.Minute), replacing, phase(detour.PhaseSuspended)}, want: true},
		"expired, replaced, refused":    {changes: []change{ttl(time.Minute), replacing, phase(detour.PhaseRefused)}, want: true},
		"expired, replaced, suspending": {changes: []change{ttl(time.Minute), replacing, phase(detour.PhaseSuspending)}, want: false},
	} {
		t.Run(name, func(t *testing.T) {
			f := activeFacts()
			for _, change := range c.changes {
				change(&f)
			}
			assert.Equal(t, c.want, finished(f.intercept, now))
		})
	}
}
