package intercepts

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes/fake"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster/clustertest"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// limit is far above what a test waits for.
const limit = time.Minute

// relays records the ports by UID.
type relays struct {
	// mu guards the field below.
	mu    sync.Mutex
	ports map[string]uint16
}

func (r *relays) Add(uid string, port uint16) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ports[uid] = port
}

func (r *relays) Remove(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ports, uid)
}

func (r *relays) count() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.ports)
}

func setOf(t *testing.T, api *clustertest.Server) (*Set, *relays) {
	t.Helper()
	client := api.Client(t)
	watch := client.Watch("alice")
	t.Cleanup(watch.Close)
	r := &relays{ports: map[string]uint16{}}
	return New(Config{
		Cluster: client, Watch: watch, Relays: r, Log: slog.New(slog.DiscardHandler),
		Session:   &detour.Session{ObjectMeta: metav1.ObjectMeta{Name: "alice", UID: "1"}},
		DialLocal: func(context.Context, uint16) (net.Conn, error) { return nil, errors.New("connection refused") },
	}), r
}

// become gives an intercept a phase and a message, as the traffic-manager does.
func become(api *clustertest.Server, name string, phase detour.InterceptPhase, message string) {
	i := &detour.Intercept{
		ObjectMeta: metav1.ObjectMeta{Name: name, UID: "uid-web-1", Generation: 9},
		Spec:       detour.InterceptSpec{Service: "web", Suspend: phase == detour.PhaseSuspended},
		Status: detour.InterceptStatus{
			Phase: phase, Workload: &detour.WorkloadRef{Kind: "Deployment", Name: "web"},
		},
	}
	meta.SetStatusCondition(&i.Status.Conditions, metav1.Condition{
		Type: detour.ConditionReady, Status: metav1.ConditionFalse, Reason: "Test", Message: message,
	})
	api.Put(i)
}

// add calls Add in the background and waits until the object is there. result waits for Add, and
// messages are its progress and warnings.
func add(
	ctx context.Context, t *testing.T, api *clustertest.Server, s *Set,
) (result func() (*daemonv1.Intercept, error), messages chan *daemonv1.InterceptResponse) {
	t.Helper()
	messages = make(chan *daemonv1.InterceptResponse, 10)
	done := make(chan struct{})
	var i *daemonv1.Intercept
	var err error
	go func() { // result waits for it
		defer close(done)
		request := &daemonv1.InterceptRequest{Service: "web", LocalPort: 8080}
		i, err = s.Add(ctx, request, func(m *daemonv1.InterceptResponse) { messages <- m })
	}()
	require.Eventually(t, func() bool { return len(api.Names("intercepts")) == 1 }, limit, time.Millisecond)
	return func() (*daemonv1.Intercept, error) { <-done; return i, err }, messages
}

func TestAddWaitsUntilActive(t *testing.T) {
	api := clustertest.New(t)
	s, r := setOf(t, api)
	result, messages := add(t.Context(), t, api, s)
	become(api, "web-1", detour.PhasePending, "waiting for pods")
	assert.Equal(t, "nothing listens on local port 8080 yet: until then, the cluster's pods answer",
		(<-messages).Warning)
	assert.Equal(t, "waiting for pods", (<-messages).Progress)
	become(api, "web-1", detour.PhaseActive, "")
	i, err := result()
	require.NoError(t, err)
	assert.Equal(t, "deployment/web", i.Workload)
	assert.Equal(t, 1, r.count())
	require.Len(t, s.Snapshot(), 1)
}

func TestAddDeletesARefusedIntercept(t *testing.T) {
	api := clustertest.New(t)
	s, r := setOf(t, api)
	result, _ := add(t.Context(), t, api, s)
	become(api, "web-1", detour.PhaseRefused, "eve has the port")
	_, err := result()
	require.EqualError(t, err, "eve has the port")
	assert.Empty(t, api.Names("intercepts"))
	assert.Zero(t, r.count())
	assert.Empty(t, s.Snapshot())
}

func TestAddDeletesAnInterruptedIntercept(t *testing.T) {
	api := clustertest.New(t)
	s, _ := setOf(t, api)
	ctx, cancel := context.WithCancel(t.Context())
	result, _ := add(ctx, t, api, s)
	cancel()
	_, err := result()
	require.EqualError(t, err, "interrupted: the intercept is taken back")
	assert.Empty(t, api.Names("intercepts"))
}

// haveOne makes an active intercept.
func haveOne(t *testing.T, api *clustertest.Server, s *Set) {
	t.Helper()
	result, _ := add(t.Context(), t, api, s)
	become(api, "web-1", detour.PhaseActive, "")
	_, err := result()
	require.NoError(t, err)
}

// The laptop answers until every agent has turned away from it.
func TestLeaveDeletesWhatIsSuspended(t *testing.T) {
	api := clustertest.New(t)
	s, r := setOf(t, api)
	haveOne(t, api, s)
	left := make(chan error, 1)
	go func() { // the test waits for it
		_, err := s.Leave(t.Context(), &daemonv1.LeaveRequest{Service: "web"})
		left <- err
	}()
	require.Eventually(t, func() bool { return api.Calls("patch intercepts") == 1 }, limit, time.Millisecond)
	assert.Equal(t, []string{"web-1"}, api.Names("intercepts"), "the traffic-manager has not suspended it yet")
	assert.Equal(t, 1, r.count())
	i := &detour.Intercept{
		ObjectMeta: metav1.ObjectMeta{Name: "web-1", UID: "uid-web-1", Generation: 10},
		Spec:       detour.InterceptSpec{Service: "web", Suspend: true},
		Status:     detour.InterceptStatus{Phase: detour.PhaseSuspended},
	}
	api.Put(i)
	require.NoError(t, <-left)
	assert.Empty(t, api.Names("intercepts"))
	assert.Zero(t, r.count())
}

// An intercept whose service lacks the named port is found by the number of the port: `leave
// --port` reads the service.
func TestLeaveReadsThePortsOfTheService(t *testing.T) {
	api := clustertest.New(t)
	s, _ := setOf(t, api)
	s.Cluster.Core = fake.NewClientset(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: clustertest.Namespace},
		Spec:       corev1.ServiceSpec{Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
	s.TakeOver([]*Pending{{request: &daemonv1.InterceptRequest{Service: "web", Port: "80"}}})
	left, err := s.Leave(t.Context(), &daemonv1.LeaveRequest{Service: "web", Port: "http"})
	require.NoError(t, err)
	require.Len(t, left, 1)
}

func TestForgetEndedDropsWhatTheClusterHasDeleted(t *testing.T) {
	api := clustertest.New(t)
	s, r := setOf(t, api)
	haveOne(t, api, s)
	s.ForgetEnded(t.Context())
	require.Len(t, s.Snapshot(), 1)
	api.Delete("intercepts", "web-1")
	require.Eventually(t, func() bool {
		s.ForgetEnded(t.Context())
		return len(s.Snapshot()) == 0
	}, limit, time.Millisecond)
	assert.Zero(t, r.count())
}

func TestRefreshReadsTheCluster(t *testing.T) {
	api := clustertest.New(t)
	s, _ := setOf(t, api)
	haveOne(t, api, s)
	become(api, "web-1", detour.PhaseLaptopGone, "the laptop is gone")
	require.Eventually(t, func() bool {
		return s.Refresh(t.Context()) == nil && s.Snapshot()[0].Phase == string(detour.PhaseLaptopGone)
	}, limit, time.Millisecond)
}

func TestRestoreCreatesPendingIntercepts(t *testing.T) {
	api := clustertest.New(t)
	s, r := setOf(t, api)
	s.TakeOver([]*Pending{{
		request: &daemonv1.InterceptRequest{Service: "web", LocalPort: 8080}, formerNames: []string{"web-0"},
	}})
	api.Break(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusServiceUnavailable) })
	s.Restore(t.Context())
	require.Len(t, s.All(), 1)
	assert.Contains(t, s.Snapshot()[0].Message, "could not answer", "the status says why it is pending")
	api.Break(nil)
	s.Restore(t.Context())
	assert.Equal(t, []string{"web-1"}, api.Names("intercepts"))
	assert.Equal(t, 1, r.count())
	assert.Equal(t, []string{"web-0", "web-1"}, s.All()[0].formerNames)
}

// A user may leave a pending intercept while Restore creates its object.
func TestRestoreTakesBackWhatWasLeftMeanwhile(t *testing.T) {
	api := clustertest.New(t)
	s, r := setOf(t, api)
	s.TakeOver([]*Pending{{request: &daemonv1.InterceptRequest{Service: "web", LocalPort: 8080}}})
	api.OnCreate(func(*unstructured.Unstructured) {
		_, err := s.Leave(t.Context(), &daemonv1.LeaveRequest{Service: "web"})
		assert.NoError(t, err)
	})
	s.Restore(t.Context())
	assert.Empty(t, api.Names("intercepts"))
	assert.Empty(t, s.All())
	assert.Zero(t, r.count())
}

func TestLeaveAllDoesNotWaitForASilentCluster(t *testing.T) {
	api := clustertest.New(t)
	s, _ := setOf(t, api)
	haveOne(t, api, s)
	api.Break(clustertest.Silent)
	ctx, done := context.WithTimeout(t.Context(), time.Second) // shorter than WithShortTimeout
	defer done()
	left, err := s.LeaveAll(ctx)
	require.True(t, cluster.IsSilent(err), "%v", err)
	require.False(t, left)
}
