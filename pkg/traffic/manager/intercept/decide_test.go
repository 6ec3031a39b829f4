package intercept

import (
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

// activeFacts are those of an intercept of deployment/catalog with two pods: its laptop is
// connected, both agents follow the intercept and have confirmed it, and the phase is Active.
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
			Namespace: "shop", Name: name, UID: types.UID(name),
			CreationTimestamp: metav1.NewTime(now.Add(-time.Minute)),
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}}},
		Status: corev1.PodStatus{
			Phase:      corev1.PodRunning,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
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
				Sources: []corev1.VolumeProjection{{
					ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token"},
				}},
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

// want is what a row expects. Agents are to follow the intercept on the pods in activate; nil means
// that nothing is activated.
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

// decisionTest changes the facts of an active intercept and says what is decided then.
type decisionTest struct {
	changes []change
	want    want
}

func runDecisions(t *testing.T, tests map[string]decisionTest) {
	t.Helper()
	for name, c := range tests {
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
		"a wiretap": {
			changes: []change{mode(detour.ModeWiretap)},
			want:    func(i *agents.ActiveIntercept) { i.Wiretap = true },
		},
		"replaced": {changes: []change{replacing}, want: func(i *agents.ActiveIntercept) { i.ErrorOnFailure = true }},
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
		"no time to live":   {want: false},
		"time left":         {changes: []change{ttl(time.Hour)}, want: false},
		"expired":           {changes: []change{ttl(time.Minute)}, want: true},
		"expired, replaced": {changes: []change{ttl(time.Minute), replacing}, want: false},
		"expired, replaced, suspended": {
			changes: []change{ttl(time.Minute), replacing, phase(detour.PhaseSuspended)},
			want:    true,
		},
		"expired, replaced, refused": {
			changes: []change{ttl(time.Minute), replacing, phase(detour.PhaseRefused)},
			want:    true,
		},
		"expired, replaced, suspending": {
			changes: []change{ttl(time.Minute), replacing, phase(detour.PhaseSuspending)},
			want:    false,
		},
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
