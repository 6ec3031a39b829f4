package resourcewatch

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
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

// breakDown ends the watches. No other starts while err is not nil.
func (c *cluster) breakDown(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failure = err
	for _, w := range c.watches {
		w.Stop()
	}
	c.watches = nil
}

func (c *cluster) listCalls() int {
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
	return corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop", ResourceVersion: "1"}}
}

// follow follows c's services until the test ends; names returns the names in the store.
func follow(t *testing.T, c *cluster) (f *Follower, names func() []string) {
	objects := &Objects[*corev1.Service]{}
	f = &Follower{Config: Config{
		Resource: "services", Fallback: "they are polled", Log: slog.New(slog.DiscardHandler),
		Object: &corev1.Service{},
		List:   c.list, Watch: c.watch, Store: objects.Store(), OnLive: objects.Notify,
	}}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { f.Run(ctx); close(done) }() // the cleanup waits for it
	t.Cleanup(func() { stop(); <-done; assert.False(t, f.Live(), "nothing is live at the end") })
	return f, func() []string {
		objects.mu.Lock()
		defer objects.mu.Unlock()
		return slices.Sorted(maps.Keys(objects.byName))
	}
}

func TestFollowerListsAgainAfterAnOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{objects: []corev1.Service{named("catalog")}}
		f, names := follow(t, c)
		synctest.Wait()
		assert.True(t, f.Live())
		assert.Equal(t, []string{"catalog"}, names())
		c.create(named("stock"))
		synctest.Wait()
		assert.Equal(t, []string{"catalog", "stock"}, names())

		// The API server goes away: the store may be outdated from now on.
		c.breakDown(errors.New("connection refused"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.False(t, f.Live())
		c.mu.Lock()
		c.objects = []corev1.Service{named("stock")}
		c.mu.Unlock()
		time.Sleep(10 * time.Minute)
		assert.False(t, f.Live())
		calls := c.listCalls()
		assert.Less(t, calls, 200, "the pauses grow")
		c.breakDown(nil)
		time.Sleep(2 * maxPause)
		synctest.Wait()
		assert.True(t, f.Live())
		assert.Equal(t, []string{"stock"}, names(), "the follower has listed again")
	})
}

func TestFollowerRetriesSlowlyWhenDenied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		services := schema.GroupResource{Resource: "services"}
		c := &cluster{failure: apierrors.NewForbidden(services, "", errors.New("no role"))}
		f, _ := follow(t, c)
		time.Sleep(10 * time.Minute)
		assert.False(t, f.Live())
		assert.Less(t, c.listCalls(), 25)
		c.breakDown(nil) // an administrator binds the role
		time.Sleep(2 * deniedPause)
		assert.True(t, f.Live())
	})
}

func TestFollowerPausesBetweenWatchesThatEndAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{}
		follow(t, c)
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			c.breakDown(nil)
		}
		assert.Less(t, c.listCalls(), 60, "in a minute")
	})
}

func TestGroupRestartsWatchesWhenTheLaptopIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{objects: []corev1.Service{named("catalog")}}
		var alive atomic.Bool
		alive.Store(true)
		f, names := follow(t, c)
		hangUps := 0
		g := Start(func() { hangUps++ })
		g.followers = []*Follower{f} // the test runs it
		g.FollowLiveness(alive.Load)
		time.Sleep(time.Minute)
		assert.Equal(t, 1, c.listCalls(), "nothing restarts while the laptop is alive")

		// The laptop sleeps. The death of its connection to the API server goes unnoticed.
		alive.Store(false)
		c.mu.Lock()
		c.objects, c.failure = []corev1.Service{named("stock")}, errors.New("no route to host")
		c.mu.Unlock()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.False(t, f.Live())
		time.Sleep(time.Minute)
		c.breakDown(nil)
		alive.Store(true)
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.True(t, f.Live(), "at once, and not after the pause")
		assert.Equal(t, []string{"stock"}, names())
		assert.Equal(t, 2, hangUps)
		g.Close()
	})
}
