package manager

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/inject"
)

const planOf8080 = `{"ports":[{"container":"app","port":8080,"via":"nftables","agentPort":9900}]}`

// An intercept rolls its workload out, begins when every agent follows it, and ends when every
// agent has let go of it.
func TestInterceptFromCreationToTheEnd(t *testing.T) {
	s := newShop(t)
	s.connect("alice")
	s.intercept("one", "alice", nil)
	s.eventually("the workload was annotated", func() bool { return s.plan() == planOf8080 })
	i := s.waitFor("one", detour.PhasePending)
	assert.Equal(t, "alice@mac", i.Status.Laptop)
	assert.Equal(t, &detour.WorkloadRef{Kind: "Deployment", Name: "catalog"}, i.Status.Workload)

	pods := s.rollOut()
	s.eventually("the intercept waited for its agents", func() bool {
		s.get("one", i)
		return message(i.Status.Conditions) == "waiting for the agents of deployment/catalog (0 of 2)"
	})
	first := s.connectAgent(&pods[0])
	config := first.follows(s, 1)
	assert.Equal(t, uint32(8080), config.Intercepts[0].Port)
	assert.Equal(t, "192.0.2.1:8083", config.Intercepts[0].RelayAddress)
	s.eventually("one agent had confirmed", func() bool {
		s.get("one", i)
		return message(i.Status.Conditions) == "waiting for the agents of deployment/catalog (1 of 2)"
	})
	assert.Equal(t, detour.PhasePending, i.Status.Phase)

	second := s.connectAgent(&pods[1])
	i = s.waitFor("one", detour.PhaseActive)
	assert.Equal(t, "2/2", i.Status.Agents)
	assert.Equal(t, "deployment/catalog sends all requests to alice@mac", message(i.Status.Conditions))

	// A patch, as the laptop's daemon sends it: the traffic-manager may write the status meanwhile.
	suspend := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"suspend":true}}`))
	require.NoError(t, api.Patch(t.Context(), i, suspend))
	i = s.waitFor("one", detour.PhaseSuspended)
	assert.Equal(t, "the cluster's pods answer", message(i.Status.Conditions))
	first.follows(s, 0)
	second.follows(s, 0)
	assert.Equal(t, planOf8080, s.plan(), "the agents stay for the next intercept")
}

// An intercept that is deleted without being suspended is over for its agents at once.
func TestDeletedIntercept(t *testing.T) {
	s := newShop(t)
	s.connect("alice")
	s.intercept("one", "alice", nil)
	s.eventually("the workload was annotated", func() bool { return s.plan() != "" })
	pods := s.rollOut()
	first, second := s.connectAgent(&pods[0]), s.connectAgent(&pods[1])
	i := s.waitFor("one", detour.PhaseActive)
	require.NoError(t, api.Delete(t.Context(), i))
	first.follows(s, 0)
	second.follows(s, 0)
}

// Traffic goes back to the cluster while a laptop does not respond, and to the laptop when it is
// back.
func TestLaptopThatIsGone(t *testing.T) {
	s := newShop(t)
	disconnect := s.connect("alice")
	s.intercept("one", "alice", nil)
	s.eventually("the workload was annotated", func() bool { return s.plan() != "" })
	pods := s.rollOut()
	agent := s.connectAgent(&pods[0])
	s.connectAgent(&pods[1])
	s.waitFor("one", detour.PhaseActive)
	disconnect()
	i := s.waitFor("one", detour.PhaseLaptopGone)
	assert.Equal(t, "the laptop does not respond: the cluster's pods answer until it is back",
		message(i.Status.Conditions))
	agent.follows(s, 0)
}

// What only the user can change is refused, in a sentence.
func TestRefusedIntercepts(t *testing.T) {
	s := newShop(t)
	s.connect("alice")
	s.create(&corev1.Service{
		ObjectMeta: s.named("external"),
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "example.com"},
	})
	s.create(&corev1.Service{ObjectMeta: s.named("nobody"), Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "nobody"}, Ports: []corev1.ServicePort{{Port: 80}},
	}})
	port := intstr.FromInt32(99)
	for name, c := range map[string]struct {
		change  func(*detour.InterceptSpec)
		reason  string
		message string
	}{
		"session": {
			change: func(s *detour.InterceptSpec) { s.Session = "nobody" },
			reason: detour.ReasonSessionNotFound, message: "session nobody does not exist: connect again",
		},
		"service": {
			change: func(s *detour.InterceptSpec) { s.Service = "katalog" },
			reason: detour.ReasonServiceNotFound, message: "service katalog does not exist in namespace " + s.namespace,
		},
		"port": {
			change: func(s *detour.InterceptSpec) { s.Port = &port },
			reason: detour.ReasonPortNotFound, message: "service catalog has no port 99: it has 80",
		},
		"workload": {
			change:  func(s *detour.InterceptSpec) { s.Service = "nobody" },
			reason:  detour.ReasonNoWorkload,
			message: "no Deployment, StatefulSet or DaemonSet stands behind service nobody",
		},
		"external": {
			change: func(s *detour.InterceptSpec) { s.Service = "external" },
			reason: detour.ReasonPortNotFound, message: "service external has no ports: there is nothing to intercept",
		},
	} {
		t.Run(name, func(t *testing.T) {
			s.intercept("refused-"+name, "alice", c.change)
			i := s.waitFor("refused-"+name, detour.PhaseRefused)
			assert.Equal(t, c.message, message(i.Status.Conditions))
			assert.Equal(t, c.reason, i.Status.Conditions[0].Reason)
		})
	}
	assert.Empty(t, s.plan(), "the workload is left alone")
}

// Two sessions cannot have the same port. The second one gets it when the first one is over.
func TestPortIsTaken(t *testing.T) {
	s := newShop(t)
	s.connect("alice")
	s.connect("bob")
	s.intercept("one", "alice", nil)
	s.eventually("the workload was annotated", func() bool { return s.plan() != "" })
	pods := s.rollOut()
	s.connectAgent(&pods[0])
	s.connectAgent(&pods[1])
	first := s.waitFor("one", detour.PhaseActive)
	s.intercept("two", "bob", nil)
	second := s.waitFor("two", detour.PhaseRefused)
	assert.Contains(t, message(second.Status.Conditions),
		"port 8080 of deployment/catalog is intercepted by alice@mac since ")
	require.NoError(t, api.Delete(t.Context(), first))
	s.waitFor("two", detour.PhaseActive)
}

// A replaced container runs again when its intercept is deleted, whoever deletes it.
func TestReplacedContainerIsRestored(t *testing.T) {
	s := newShop(t)
	s.connect("alice")
	s.intercept("one", "alice", func(spec *detour.InterceptSpec) { spec.Mode = detour.ModeReplace })
	s.eventually("the workload was annotated", func() bool { return s.plan() != "" })
	plan, err := inject.ParsePlan(s.plan())
	require.NoError(t, err)
	require.Equal(t, []string{"app"}, plan.Replaced)
	pods := s.rollOut()
	s.connectAgent(&pods[0])
	s.connectAgent(&pods[1])
	i := s.waitFor("one", detour.PhaseActive)
	assert.Equal(t, "container app of deployment/catalog does not run, alice@mac does its work",
		message(i.Status.Conditions))
	require.NoError(t, api.Delete(t.Context(), i))
	s.eventually("the container was restored", func() bool { return s.plan() == planOf8080 })
}

// An intercept is deleted when its time to live is over.
func TestTimeToLive(t *testing.T) {
	s := newShop(t)
	s.connect("alice")
	s.intercept("one", "alice", func(spec *detour.InterceptSpec) {
		spec.TTL = &metav1.Duration{Duration: time.Second}
	})
	s.eventually("the intercept was deleted", func() bool {
		err := api.Get(s.Context(), client.ObjectKey{Namespace: s.namespace, Name: "one"}, &detour.Intercept{})
		return apierrors.IsNotFound(err)
	})
}

// The API server itself refuses an intercept that makes no sense, or that changes.
func TestValidation(t *testing.T) {
	s := newShop(t)
	s.connect("alice")
	s.intercept("one", "alice", nil)
	var i detour.Intercept
	s.get("one", &i)
	other := client.RawPatch(types.MergePatchType, []byte(`{"spec":{"service":"other"}}`))
	require.ErrorContains(t, api.Patch(t.Context(), &i, other), "only suspend can change")
	for name, c := range map[string]struct {
		spec    detour.InterceptSpec
		message string
	}{
		"neither service nor workload": {
			spec: detour.InterceptSpec{Session: "alice"}, message: "service or workload",
		},
		"a service without a local port": {
			spec: detour.InterceptSpec{Session: "alice", Service: "catalog"}, message: "local port",
		},
		"TLS without a match": {
			spec: detour.InterceptSpec{
				Session: "alice", Service: "catalog", LocalPort: 8080, TLS: &detour.TLS{Secret: "web-tls"},
			},
			message: "match",
		},
	} {
		t.Run(name, func(t *testing.T) {
			err := api.Create(t.Context(), &detour.Intercept{ObjectMeta: s.named("invalid"), Spec: c.spec})
			require.ErrorContains(t, err, c.message)
		})
	}
}
