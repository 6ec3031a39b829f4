package svcwatch

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
)

const (
	minPause = 200 * time.Millisecond
	maxPause = 10 * time.Second
	// deniedPause is for what the user may not watch: an administrator may allow it meanwhile.
	deniedPause = time.Minute
)

// follower keeps a store equal to what the cluster has of one resource, with client-go's reflector. An informer around it would keep
// a second copy of each object and would not say when its watch is broken, which is when DNS must not trust the store.
type follower struct {
	what   string
	log    *slog.Logger
	object runtime.Object
	list   func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch  func(context.Context, metav1.ListOptions) (watch.Interface, error)
	store  cache.ReflectorStore

	// live says that the store is whole and a watch keeps it so.
	live atomic.Bool

	mu     sync.Mutex
	err    error              // the last call's
	cancel context.CancelFunc // of the present try
}

// run follows until ctx ends.
func (f *follower) run(ctx context.Context) {
	defer f.live.Store(false)
	pause, told := minPause, false
	for ctx.Err() == nil {
		trying, cancel := context.WithCancel(ctx)
		f.mu.Lock()
		f.cancel = cancel
		f.mu.Unlock()
		began := time.Now()
		reflector := cache.NewReflectorWithOptions(source{f.calls()}, f.object, f.store, cache.ReflectorOptions{Name: f.what})
		if err := reflector.ListAndWatchWithContext(trying); err != nil {
			f.note(err)
		}
		if f.live.Swap(false) && time.Since(began) > maxPause {
			pause = minPause // a watch that ended after a while, not one that never works
		}
		err := f.problem()
		wait := pause
		if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
			wait = deniedPause
			if !told {
				told = true
				f.log.Info("the user may not watch a resource, the cluster's DNS is asked instead", "resource", f.what, "err", err)
			}
		}
		if trying.Err() == nil {
			f.log.Debug("a resource is not watched, the cluster's DNS is asked instead", "resource", f.what, "err", err, "again", wait)
		}
		select {
		case <-trying.Done(): // again
		case <-time.After(wait/2 + rand.N(wait)):
		}
		cancel()
		pause = min(2*pause, maxPause)
	}
}

// again ends the present try, whatever it waits for: its connection may be dead.
func (f *follower) again() {
	f.live.Store(false)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.cancel != nil {
		f.cancel()
	}
}

// calls are the two calls of the reflector, which say how it goes: it says nothing itself when a watch that ended cannot be
// opened again.
func (f *follower) calls() *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			all, err := f.list(ctx, o)
			f.note(err)
			return all, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := f.watch(ctx, o)
			f.note(err)
			f.live.Store(err == nil && ctx.Err() == nil)
			return w, err
		},
	}
}

func (f *follower) note(err error) {
	if err != nil {
		f.live.Store(false)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *follower) problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

// source lists before it watches. Without a list, a store that is filled again would look whole while the old one is still in use.
type source struct{ *cache.ListWatch }

// IsWatchListSemanticsUnSupported is how a reflector asks.
func (source) IsWatchListSemanticsUnSupported() bool { return true }

// store passes on what a reflector sees.
type store[T any] struct {
	put, remove func(T)
	all         func([]T)
}

func (s store[T]) Add(o any) error    { return with(o, s.put) }
func (s store[T]) Update(o any) error { return with(o, s.put) }
func (s store[T]) Delete(o any) error { return with(o, s.remove) }
func (s store[T]) Resync() error      { return nil }

func (s store[T]) Replace(all []any, _ string) error {
	typed := make([]T, 0, len(all))
	for _, o := range all {
		if err := with(o, func(t T) { typed = append(typed, t) }); err != nil {
			return err
		}
	}
	s.all(typed)
	return nil
}

func with[T any](o any, f func(T)) error {
	t, ok := o.(T)
	if !ok {
		return fmt.Errorf("an object of type %T came where another was asked for", o)
	}
	f(t)
	return nil
}
