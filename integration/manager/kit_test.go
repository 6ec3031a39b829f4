package manager

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/agentconfig"
	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
	"github.com/detour-dev/detour/pkg/version"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// shop is a namespace with a workload and a service.
type shop struct {
	*testing.T
	namespace string
	pods      int // how many pods the workload has had
}

var labels = map[string]string{"app": "catalog"}

// newShop creates a namespace with deployment/catalog of two pods behind service catalog.
func newShop(t *testing.T) *shop {
	t.Parallel()
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "shop-"}}
	require.NoError(t, api.Create(t.Context(), namespace))
	s := &shop{T: t, namespace: namespace.Name}
	s.create(&corev1.ServiceAccount{ObjectMeta: s.named("default")})
	s.create(&corev1.Service{
		ObjectMeta: s.named("catalog"),
		Spec: corev1.ServiceSpec{
			Selector: labels, Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		},
	})
	replicas := int32(2)
	s.create(&appsv1.Deployment{
		ObjectMeta: s.named("catalog"),
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "catalog"}}},
			},
		},
	})
	s.rollOut()
	return s
}

func (s *shop) named(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: s.namespace, Name: name}
}

func (s *shop) create(o client.Object) {
	s.Helper()
	require.NoError(s, api.Create(s.Context(), o))
}

func (s *shop) get(name string, o client.Object) {
	s.Helper()
	require.NoError(s, api.Get(s.Context(), client.ObjectKey{Namespace: s.namespace, Name: name}, o))
}

// eventually waits until condition is true. Only the limit of the whole test ends the wait.
func (s *shop) eventually(what string, condition func() bool) {
	s.Helper()
	for !condition() {
		select {
		case <-s.Context().Done():
			require.FailNow(s, "the test ended before "+what)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// plan returns the annotation of the workload's template.
func (s *shop) plan() string {
	var d appsv1.Deployment
	s.get("catalog", &d)
	return d.Spec.Template.Annotations[inject.Annotation]
}

// rollOut does what the Deployment's controller, the webhook and the kubelet do: it replaces all
// pods by ready ones of the newest template.
func (s *shop) rollOut() []corev1.Pod {
	s.Helper()
	var d appsv1.Deployment
	s.get("catalog", &d)
	require.NoError(s, api.DeleteAllOf(s.Context(), &corev1.Pod{}, client.InNamespace(s.namespace),
		client.MatchingLabels(labels), client.GracePeriodSeconds(0)))
	var pods []corev1.Pod
	for range *d.Spec.Replicas {
		s.pods++
		pods = append(pods, s.newPod("catalog-"+string(rune('a'+s.pods)), d.Spec.Template))
	}
	before := client.MergeFrom(d.DeepCopy())
	d.Status = appsv1.DeploymentStatus{
		ObservedGeneration: d.Generation, Replicas: *d.Spec.Replicas, UpdatedReplicas: *d.Spec.Replicas,
		ReadyReplicas: *d.Spec.Replicas, AvailableReplicas: *d.Spec.Replicas,
	}
	require.NoError(s, api.Status().Patch(s.Context(), &d, before))
	return pods
}

func (s *shop) newPod(name string, template corev1.PodTemplateSpec) corev1.Pod {
	s.Helper()
	pod := corev1.Pod{ObjectMeta: *template.ObjectMeta.DeepCopy(), Spec: *template.Spec.DeepCopy()}
	pod.Namespace, pod.Name, pod.Spec.ServiceAccountName = s.namespace, name, "default"
	plan, err := inject.ParsePlan(pod.Annotations[inject.Annotation])
	require.NoError(s, err)
	require.NoError(s, inject.Mutate(&pod, plan, agentOptions))
	s.create(&pod)
	pod.Status = corev1.PodStatus{
		Phase:      corev1.PodRunning,
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	require.NoError(s, api.Status().Update(s.Context(), &pod))
	return pod
}

// connect creates a session whose laptop stays connected until the returned function is called.
func (s *shop) connect(name string) (disconnect func()) {
	s.Helper()
	key := s.newSession(name)
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan struct{})
	go func() { // disconnect waits for it
		defer close(done)
		for ctx.Err() == nil {
			laptops.keepAlive(key)
			select {
			case <-ctx.Done():
			case <-time.After(staleAfter / 4):
			}
		}
	}()
	disconnect = func() { cancel(); <-done }
	s.Cleanup(disconnect)
	s.eventually("session "+name+" was connected", func() bool {
		var session detour.Session
		s.get(name, &session)
		return session.Status.Connected
	})
	return disconnect
}

// newSession creates a session and returns its key.
func (s *shop) newSession(name string) wgkey.Key {
	s.Helper()
	private, err := wgkey.NewPrivate()
	require.NoError(s, err)
	s.create(&detour.Session{ObjectMeta: s.named(name), Spec: detour.SessionSpec{
		PublicKey: private.Public().String(), ClientVersion: version.Version, User: name, Host: "mac",
	}})
	return private.Public()
}

// intercept creates an intercept of the service for a session.
func (s *shop) intercept(name, session string, change func(*detour.InterceptSpec)) {
	s.Helper()
	spec := detour.InterceptSpec{Session: session, Service: "catalog", LocalPort: 8080}
	if change != nil {
		change(&spec)
	}
	s.create(&detour.Intercept{ObjectMeta: s.named(name), Spec: spec})
}

// waitFor waits until an intercept has a phase, and returns it.
func (s *shop) waitFor(name string, phase detour.InterceptPhase) *detour.Intercept {
	s.Helper()
	var i detour.Intercept
	s.eventually("intercept "+name+" was "+string(phase), func() bool {
		s.get(name, &i)
		return i.Status.Phase == phase
	})
	return &i
}

func message(conditions []metav1.Condition) string {
	if ready := meta.FindStatusCondition(conditions, detour.ConditionReady); ready != nil {
		return ready.Message
	}
	return ""
}

// agent is a connected agent. It applies every configuration that it gets.
type agent struct {
	configs chan *agentv1.Config // the newest
}

// connectAgent connects the agent of a pod, with the token that the kubelet would give it.
func (s *shop) connectAgent(pod *corev1.Pod) *agent {
	s.Helper()
	token, err := clientset.CoreV1().ServiceAccounts(s.namespace).CreateToken(s.Context(), "default",
		&authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
			Audiences: []string{agentconfig.Audience},
			BoundObjectRef: &authenticationv1.BoundObjectReference{
				Kind:       "Pod",
				APIVersion: "v1",
				Name:       pod.Name,
				UID:        pod.UID,
			},
		}}, metav1.CreateOptions{})
	require.NoError(s, err)
	conn, err := grpc.NewClient(agentAPI.address, grpc.WithTransportCredentials(credentials.NewTLS(agentAPI.client)))
	require.NoError(s, err)
	s.Cleanup(func() { _ = conn.Close() })
	ctx := metadata.AppendToOutgoingContext(s.Context(), "authorization", "Bearer "+token.Status.Token)
	stream, err := agentv1.NewAgentServiceClient(conn).Connect(ctx)
	require.NoError(s, err)
	hello := &agentv1.AgentMessage{Message: &agentv1.AgentMessage_Hello{Hello: &agentv1.Hello{Ports: []uint32{8080}}}}
	require.NoError(s, stream.Send(hello))
	a := &agent{configs: make(chan *agentv1.Config, 1)}
	go a.run(stream) // ends with the connection, which the cleanup closes
	return a
}

func (a *agent) run(stream grpc.BidiStreamingClient[agentv1.AgentMessage, agentv1.Config]) {
	for {
		config, err := stream.Recv()
		if err != nil {
			return
		}
		applied := &agentv1.Applied{Generation: config.Generation}
		_ = stream.Send(&agentv1.AgentMessage{Message: &agentv1.AgentMessage_Applied{Applied: applied}})
		select {
		case <-a.configs:
		default:
		}
		a.configs <- config
	}
}

// follows waits until the agent follows that many intercepts, and returns the newest configuration.
func (a *agent) follows(s *shop, intercepts int) *agentv1.Config {
	s.Helper()
	var config *agentv1.Config
	s.eventually("the agent had its configuration", func() bool {
		select {
		case config = <-a.configs:
		default:
		}
		return config != nil && len(config.Intercepts) == intercepts
	})
	a.configs <- config
	return config
}
