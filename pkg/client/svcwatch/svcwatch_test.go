package svcwatch

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/detour-dev/detour/pkg/dnsproxy/records"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is the part of an API that a follower calls.
type cluster struct {
	mu      sync.Mutex
	objects []corev1.Service
	watches []*watch.FakeWatcher
	failure error // of both calls
	calls   int
}

func (c *cluster) list(context.Context, metav1.ListOptions) (runtime.Object, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return &corev1.ServiceList{Items: c.objects, ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, c.failure
}

func (c *cluster) watch(context.Context, metav1.ListOptions) (watch.Interface, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure != nil {
		return nil, c.failure
	}
	w := watch.NewFake()
	c.watches = append(c.watches, w)
	return w, nil
}

// breakDown ends the watches, and lets no other begin while err is not nil.
func (c *cluster) breakDown(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = err
	for _, w := range c.watches {
		w.Stop()
	}
	c.watches = nil
}

func (c *cluster) asked() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls
}

func (c *cluster) create(s corev1.Service) {
	s.ResourceVersion = "2"
	c.mu.Lock()
	c.objects = append(c.objects, s)
	w := c.watches[len(c.watches)-1]
	c.mu.Unlock()
	w.Add(&s)
}

func named(name string) corev1.Service {
	return corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", ResourceVersion: "1"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", Ports: []corev1.ServicePort{{Name: "http", Protocol: "TCP", Port: 80}}}}
}

// follow follows c's services; have are the names in the store.
func follow(t *testing.T, c *cluster) (f *follower, have func() string) {
	var mu sync.Mutex
	store := cache.NewStore(cache.MetaNamespaceKeyFunc)
	f = &follower{what: "services", log: slog.New(slog.DiscardHandler), object: &corev1.Service{}, list: c.list, watch: c.watch, store: store}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { f.run(ctx); close(done) }()
	t.Cleanup(func() { stop(); <-done; assert.False(t, f.live.Load(), "nothing is live at the end") })
	return f, func() string {
		mu.Lock()
		defer mu.Unlock()
		var all []string
		for _, s := range store.List() {
			all = append(all, s.(*corev1.Service).Name)
		}
		return strings.Join(all, " ")
	}
}

func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{objects: []corev1.Service{named("catalog")}}
		f, have := follow(t, c)
		synctest.Wait()
		assert.True(t, f.live.Load())
		assert.Equal(t, "catalog", have())
		c.create(named("stock"))
		synctest.Wait()
		assert.ElementsMatch(t, []string{"catalog", "stock"}, strings.Fields(have()))

		// The API server goes away: what is in the store may be wrong from now on.
		c.breakDown(errors.New("connection refused"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.False(t, f.live.Load())
		c.mu.Lock()
		c.objects = []corev1.Service{named("stock")}
		c.mu.Unlock()
		time.Sleep(10 * time.Minute)
		assert.False(t, f.live.Load())
		calls := c.asked()
		assert.Less(t, calls, 200, "it is asked patiently")
		c.breakDown(nil)
		time.Sleep(2 * maxPause)
		synctest.Wait()
		assert.True(t, f.live.Load())
		assert.Equal(t, "stock", have(), "what happened meanwhile is known")
	})
}

func TestDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{failure: apierrors.NewForbidden(schema.GroupResource{Resource: "services"}, "", errors.New("no role"))}
		f, _ := follow(t, c)
		time.Sleep(10 * time.Minute)
		assert.False(t, f.live.Load())
		assert.Less(t, c.asked(), 25)
		c.breakDown(nil) // an administrator binds the role
		time.Sleep(2 * deniedPause)
		assert.True(t, f.live.Load())
	})
}

// A watch that always ends at once is not tried again and again without a pause.
func TestShortWatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		follow(t, c)
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			c.breakDown(nil)
		}
		assert.Less(t, c.asked(), 60, "in a minute")
	})
}

func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{objects: []corev1.Service{named("catalog")}}
		var alive atomic.Bool
		alive.Store(true)
		f, have := follow(t, c)
		n := &Names{services: f, endpoints: &follower{}, namespaces: &follower{}}
		hungUp := 0
		ctx, stop := context.WithCancel(t.Context())
		n.done.Go(func() { n.revive(ctx, alive.Load, func() { hungUp++ }) })
		time.Sleep(time.Minute)
		assert.Equal(t, 1, c.asked(), "nothing is begun anew while all is well")

		// The laptop sleeps. Its connection to the API server is dead and does not know.
		alive.Store(false)
		c.mu.Lock()
		c.objects, c.failure = []corev1.Service{named("stock")}, errors.New("no route to host")
		c.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.False(t, f.live.Load())
		time.Sleep(time.Minute)
		c.breakDown(nil)
		alive.Store(true)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.True(t, f.live.Load(), "at once, and not when it is patient again")
		assert.Equal(t, "stock", have())
		assert.Equal(t, 2, hungUp)
		stop()
		n.done.Wait()
	})
}

func TestObjects(t *testing.T) {
	ready, unready, name, tcp, number, hostname := true, false, "http", corev1.ProtocolTCP, int32(8080), "db-0"
	assert.Equal(t, records.Service{Name: "catalog", ClusterIPs: []string{"10.96.0.5"}, Ports: []records.Port{{Name: "http", Protocol: "TCP", Number: 80}}}, service(new(named("catalog"))))
	external := corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "outside"}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeExternalName, ExternalName: "db.example.com"}}
	assert.Equal(t, records.Service{Name: "outside", External: "db.example.com", IsExternal: true}, service(&external))
	both := corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "both"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.5", ClusterIPs: []string{"10.96.0.5", "fd00::5"}}}
	assert.Equal(t, []string{"10.96.0.5", "fd00::5"}, service(&both).ClusterIPs)

	s := discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "db-abc", Labels: map[string]string{discoveryv1.LabelServiceName: "db"}},
		Ports:      []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &number}, {}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.42.0.1"}, Hostname: &hostname, Conditions: discoveryv1.EndpointConditions{Ready: &ready}},
			{Addresses: []string{"10.42.0.2"}, Conditions: discoveryv1.EndpointConditions{Ready: &unready}},
			{Addresses: []string{"10.42.0.3"}},
		},
	}
	assert.Equal(t, records.Slice{
		Name: "db-abc", Service: "db", Ports: []records.Port{{Name: "http", Protocol: "TCP", Number: 8080}, {Number: -1}},
		Endpoints: []records.Endpoint{{Hostname: "db-0", Addresses: []string{"10.42.0.1"}}, {Addresses: []string{"10.42.0.3"}}},
	}, slice(&s))
}

// Only while both watches of the namespace are whole is it answered for.
func TestAnswerWhileLive(t *testing.T) {
	n := &Names{zone: records.New("cluster.local", "shop"), services: &follower{}, endpoints: &follower{}, namespaces: &follower{}, known: map[string]bool{"shop": true}}
	n.zone.PutService(service(new(named("catalog"))))
	q := dns.Question{Name: "catalog.shop.svc.cluster.local.", Qtype: dns.TypeA, Qclass: dns.ClassINET}
	for _, live := range [][2]bool{{false, false}, {true, false}, {false, true}, {true, true}} {
		n.services.live.Store(live[0])
		n.endpoints.live.Store(live[1])
		_, ok := n.Answer(q)
		assert.Equal(t, live[0] && live[1], ok)
	}
	_, known := n.Namespace("shop")
	assert.False(t, known)
	n.namespaces.live.Store(true)
	for name, want := range map[string]bool{"shop": true, "com": false} {
		exists, known := n.Namespace(name)
		require.True(t, known)
		assert.Equal(t, want, exists, name)
	}
}
