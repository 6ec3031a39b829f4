package badnet

import (
	"sync"
	"time"
)

// weather is what stops everything. Its zero value is fine weather.
type weather struct {
	mu     sync.Mutex
	resume chan struct{} // not nil when stalled, closed when it ends
}

func (w *weather) stall(stalled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case stalled && w.resume == nil:
		w.resume = make(chan struct{})
	case !stalled && w.resume != nil:
		close(w.resume)
		w.resume = nil
	}
}

// wait returns when nothing is stalled, and false when done ends before.
func (w *weather) wait(done <-chan struct{}) bool {
	for {
		w.mu.Lock()
		resume := w.resume
		w.mu.Unlock()
		if resume == nil {
			return true
		}
		select {
		case <-done:
			return false
		case <-resume:
		}
	}
}

// link is one direction of the network, which all connections share. Its zero value has neither
// delay nor limit.
type link struct {
	mu      sync.Mutex
	delay   time.Duration
	rate    int64         // bits a second, 0 without limit
	free    time.Time     // when the link has sent all it was given
	changed chan struct{} // closed when the rate changes
}

func (l *link) setDelay(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

func (l *link) setRate(bitsPerSecond int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.free = bitsPerSecond, time.Time{}
	if l.changed != nil {
		close(l.changed)
		l.changed = nil
	}
}

// arrival is when that which sets off now arrives.
func (l *link) arrival() time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Now().Add(l.delay)
}

// reserve takes the link for so many bytes, after those who took it before. It gives the time when
// they are sent, and a channel that says that the rate is another one meanwhile and the reservation
// void.
func (l *link) reserve(bytes int) (time.Time, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.rate <= 0 {
		return now, nil
	}
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(bytes) * 8 / float64(l.rate) * float64(time.Second)))
	return l.free, l.changed
}

// send waits until so many bytes are through, and gives false when done ends before.
func (l *link) send(bytes int, done <-chan struct{}) bool {
	for {
		at, changed := l.reserve(bytes)
		wait := time.Until(at)
		if wait <= 0 {
			return true
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			return true
		case <-changed:
			timer.Stop()
		case <-done:
			timer.Stop()
			return false
		}
	}
}
