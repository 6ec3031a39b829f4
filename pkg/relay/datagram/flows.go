package datagram

import (
	"net"
	"sync"
	"time"
)

// IdleTimeout is how long a flow may be silent before it is dropped. MaxFlows is how many flows are
// kept: a new one replaces the one that was silent for longest.
const (
	IdleTimeout = time.Minute
	MaxFlows    = 4096
)

// Flows keeps a value for each flow, such as a socket, until the flow was idle for a while. Its
// methods may be called concurrently.
type Flows[K comparable, V any] struct {
	idle  time.Duration
	limit int
	drop  func(K, V)

	// mu guards the fields below.
	mu     sync.Mutex
	all    map[K]*flow[V]
	timer  *time.Timer
	closed bool
}

type flow[V any] struct {
	value V
	last  time.Time
}

// NewFlows returns an empty set of up to limit flows. It calls drop with each flow that it drops;
// drop must not call the methods of the set. The caller ends it with Close.
func NewFlows[K comparable, V any](idle time.Duration, limit int, drop func(K, V)) *Flows[K, V] {
	return &Flows[K, V]{idle: idle, limit: limit, drop: drop, all: map[K]*flow[V]{}}
}

// Get returns the value of a flow, and notes that the flow was used. For a new flow it calls make.
// It returns the error of make, or net.ErrClosed after Close.
func (f *Flows[K, V]) Get(k K, make func() (V, error)) (v V, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now()
	if known := f.all[k]; known != nil {
		known.last = now
		return known.value, nil
	}
	if f.closed {
		return v, net.ErrClosed
	}
	if v, err = make(); err != nil {
		return v, err
	}
	if len(f.all) >= f.limit {
		f.dropOldestLocked()
	}
	f.all[k] = &flow[V]{value: v, last: now}
	if f.timer == nil {
		f.timer = time.AfterFunc(f.idle/2, f.sweep)
	}
	return v, nil
}

// Touch notes that a flow was used.
func (f *Flows[K, V]) Touch(k K) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if known := f.all[k]; known != nil {
		known.last = time.Now()
	}
}

// Len returns the number of flows.
func (f *Flows[K, V]) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all)
}

// Close drops all flows. No flow is added afterwards.
func (f *Flows[K, V]) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.timer != nil {
		f.timer.Stop()
	}
	for k := range f.all {
		f.dropLocked(k)
	}
}

func (f *Flows[K, V]) dropLocked(k K) {
	if known := f.all[k]; known != nil {
		delete(f.all, k)
		f.drop(k, known.value)
	}
}

func (f *Flows[K, V]) dropOldestLocked() {
	var oldest K
	var last time.Time
	for k, known := range f.all {
		if last.IsZero() || known.last.Before(last) {
			oldest, last = k, known.last
		}
	}
	f.dropLocked(oldest)
}

// sweep drops the flows that were idle for too long, and runs again while there are flows.
func (f *Flows[K, V]) sweep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, known := range f.all {
		if time.Since(known.last) >= f.idle {
			f.dropLocked(k)
		}
	}
	if len(f.all) > 0 && !f.closed {
		f.timer.Reset(f.idle / 2)
	} else {
		f.timer = nil
	}
}
