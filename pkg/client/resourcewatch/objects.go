package resourcewatch

import (
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Objects is a store of the objects of one namespace by name. Its objects are shared: callers must
// not change them. The zero value is ready for use.
type Objects[T metav1.Object] struct {
	// mu guards the fields below.
	mu      sync.Mutex
	byName  map[string]T
	changed chan struct{} // closed at the next change; nil if nobody waits
}

// Get returns an object that the store has.
func (o *Objects[T]) Get(name string) (object T, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	object, ok = o.byName[name]
	return object, ok
}

// Changed returns a channel that is closed at the next change. Take the channel before reading the
// objects: no change is missed then.
func (o *Objects[T]) Changed() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.changed == nil {
		o.changed = make(chan struct{})
	}
	return o.changed
}

// Notify closes the channel of Changed, for a change that is not in the objects.
func (o *Objects[T]) Notify() { o.update(func() {}) }

// Store returns the store for a Follower.
func (o *Objects[T]) Store() Callbacks[T] {
	return Callbacks[T]{
		Put: func(object T) {
			o.update(func() {
				if o.byName == nil {
					o.byName = map[string]T{}
				}
				o.byName[object.GetName()] = object
			})
		},
		Remove: func(object T) { o.update(func() { delete(o.byName, object.GetName()) }) },
		Replaced: func(all []T) {
			o.update(func() {
				o.byName = make(map[string]T, len(all))
				for _, object := range all {
					o.byName[object.GetName()] = object
				}
			})
		},
	}
}

func (o *Objects[T]) update(change func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	change()
	if o.changed != nil {
		close(o.changed)
		o.changed = nil
	}
}
