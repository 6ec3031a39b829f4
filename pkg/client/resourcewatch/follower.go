package resourcewatch

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/detour-dev/detour/pkg/netx"
)

const (
	minPause = 200 * time.Millisecond
	maxPause = 10 * time.Second
	// deniedPause is the pause after the API server refused a watch: an administrator may grant the
	// right meanwhile.
	deniedPause = time.Minute
)

// Config says what a Follower follows. All fields but OnLive are required.
type Config struct {
	// Resource is the plural name, for the log.
	Resource string
	// Fallback completes the sentence "the user may not watch a resource, ...".
	Fallback string
	// DeniedLevel is the level of that message.
	DeniedLevel slog.Level
	Log         *slog.Logger
	// Object is an empty object of the watched type.
	Object runtime.Object
	List   func(context.Context, metav1.ListOptions) (runtime.Object, error)
	Watch  func(context.Context, metav1.ListOptions) (watch.Interface, error)
	// Store receives the objects. Its methods are not called concurrently.
	Store cache.ReflectorStore
	// OnLive is called when Live has changed. It may be nil.
	OnLive func()
}

// Follower keeps a store equal to the cluster's objects of one resource. An informer would keep a
// second copy of each object, and would not report that its watch is broken, which is when the
// store must not be trusted.
type Follower struct {
	Config
	live atomic.Bool

	// mu guards the fields below.
	mu     sync.Mutex
	err    error              // of the last call
	cancel context.CancelFunc // ends the present attempt
}

// Live reports whether the store is complete and a watch keeps it so.
func (f *Follower) Live() bool { return f.live.Load() }

// Run follows until ctx ends.
func (f *Follower) Run(ctx context.Context) {
	defer f.setLive(false)
	backoff, logged := netx.Backoff{Min: minPause, Max: maxPause, Jitter: true}, false
	for ctx.Err() == nil {
		trying, cancel := context.WithCancel(ctx)
		f.mu.Lock()
		f.cancel = cancel
		f.mu.Unlock()
		start := time.Now()
		options := cache.ReflectorOptions{Name: f.Resource}
		reflector := cache.NewReflectorWithOptions(listFirst{f.observedCalls()}, f.Object, f.Store, options)
		if err := reflector.ListAndWatchWithContext(trying); err != nil {
			f.note(err)
		}
		if f.setLive(false) && time.Since(start) > maxPause {
			backoff.Reset() // the watch worked for a while
		}
		err := f.lastError()
		pause := backoff.Next()
		if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			pause = deniedPause/2 + rand.N(deniedPause)
			if !logged {
				logged = true
				message := "the user may not watch a resource, " + f.Fallback
				f.Log.Log(ctx, f.DeniedLevel, message, "resource", f.Resource, "err", err)
			}
		}
		if trying.Err() == nil {
			f.Log.Debug("a resource is not watched, "+f.Fallback, "resource", f.Resource, "err", err, "pause", pause)
		}
		_ = netx.Sleep(trying, pause) // Restart ends it
		cancel()
	}
}

// Restart ends the present attempt, whatever it waits for, because its connection may be dead. Run
// starts the next one at once.
func (f *Follower) Restart() {
	f.setLive(false)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cancel != nil {
		f.cancel()
	}
}

// observedCalls wraps the two calls of the reflector to observe their results: the reflector itself
// does not report that a watch which ended cannot be opened again.
func (f *Follower) observedCalls() *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			all, err := f.List(ctx, o)
			f.note(err)
			return all, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := f.Watch(ctx, o)
			f.note(err)
			f.setLive(err == nil && ctx.Err() == nil)
			return w, err
		},
	}
}

// setLive sets Live and returns what it was.
func (f *Follower) setLive(live bool) bool {
	was := f.live.Swap(live)
	if was != live && f.OnLive != nil {
		f.OnLive()
	}
	return was
}

func (f *Follower) note(err error) {
	if err != nil {
		f.setLive(false)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *Follower) lastError() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// listFirst makes the reflector list before it watches. With a streamed list, a store that is being
// refilled would look complete while it still has the old objects.
type listFirst struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is what a reflector asks for.
func (listFirst) IsWatchListSemanticsUnSupported() bool { return true }

// Callbacks is a store that passes typed objects on. All fields are required.
type Callbacks[T any] struct {
	Put, Remove func(T)
	Replaced    func([]T)
}

// Add implements cache.ReflectorStore.
func (c Callbacks[T]) Add(o any) error { return with(o, c.Put) }

// Update implements cache.ReflectorStore.
func (c Callbacks[T]) Update(o any) error { return with(o, c.Put) }

// Delete implements cache.ReflectorStore.
func (c Callbacks[T]) Delete(o any) error { return with(o, c.Remove) }

// Resync implements cache.ReflectorStore.
func (c Callbacks[T]) Resync() error { return nil }

// Replace implements cache.ReflectorStore.
func (c Callbacks[T]) Replace(all []any, _ string) error {
	typed := make([]T, 0, len(all))
	for _, o := range all {
		if err := with(o, func(t T) { typed = append(typed, t) }); err != nil {
			return err
		}
	}
	c.Replaced(typed)
	return nil
}

func with[T any](o any, f func(T)) error {
	t, ok := o.(T)
	if !ok {
		return fmt.Errorf("the API server sent an object of type %T instead of %T", o, t)
	}
	f(t)
	return nil
}
