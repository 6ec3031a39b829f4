package datagram

import (
	"net"
	"sync"
	"time"
)

// IdleTimeout is how long a flow may be silent before it is forgotten, MaxFlows how many there may be; then the one that was silent for the longest goes.
const (
	IdleTimeout = time.Minute
	MaxFlows    = 4096
)

// Flows remembers something for each flow until it has been idle.
type Flows[K comparable, V any] struct {
	idle  time.Duration
	limit int
	drop  func(K, V)

	mu     sync.Mutex
	all    map[K]*flow[V]
	timer  *time.Timer
	closed bool
}

type flow[V any] struct {
	value V
	last  time.Time
}

// NewFlows makes flows that give what they forget to drop, which must not come back to them.
func NewFlows[K comparable, V any](idle time.Duration, limit int, drop func(K, V)) *Flows[K, V] {
	return &Flows[K, V]{idle: idle, limit: limit, drop: drop, all: map[K]*flow[V]{}}
}

// Get is what is remembered of a flow, which has just been used. What is not there is made, unless that fails or the flows are closed.
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
		f.dropOldest()
	}
	f.all[k] = &flow[V]{value: v, last: now}
	if f.timer == nil {
		f.timer = time.AfterFunc(f.idle/2, f.sweep)
	}
	return v, nil
}

// Touch says that a flow has just been used.
func (f *Flows[K, V]) Touch(k K) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if known := f.all[k]; known != nil {
		known.last = time.Now()
	}
}

// Len is how many there are.
func (f *Flows[K, V]) Len() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.all)
}

// Close drops all flows, and makes no more.
func (f *Flows[K, V]) Close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.closed = true
	if f.timer != nil {
		f.timer.Stop()
	}
	for k := range f.all {
		f.forget(k)
	}
}

func (f *Flows[K, V]) forget(k K) {
	if known := f.all[k]; known != nil {
		delete(f.all, k)
		f.drop(k, known.value)
	}
}

func (f *Flows[K, V]) dropOldest() {
	var oldest K
	var last time.Time
	for k, known := range f.all {
		if last.IsZero() || known.last.Before(last) {
			oldest, last = k, known.last
		}
	}
	f.forget(oldest)
}

func (f *Flows[K, V]) sweep() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for k, known := range f.all {
		if time.Since(known.last) >= f.idle {
			f.forget(k)
		}
	}
	if len(f.all) > 0 && !f.closed {
		f.timer.Reset(f.idle / 2)
	} else {
		f.timer = nil
	}
}
