package mux

import (
	"sync"
	"time"
)

// deadline is the time at which waiting on a stream ends.
type deadline struct {
	lock    sync.Locker // guards the fields below
	changed func()      // wakes the waiting goroutines; called with lock held
	at      time.Time   // zero for never
	timer   *time.Timer
}

func (d *deadline) set(t time.Time) {
	d.lock.Lock()
	defer d.lock.Unlock()
	d.at = t
	d.stopLocked()
	if !t.IsZero() {
		d.timer = time.AfterFunc(max(0, time.Until(t)), func() {
			d.lock.Lock()
			defer d.lock.Unlock()
			d.changed()
		})
	}
	d.changed()
}

func (d *deadline) stopLocked() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) passedLocked() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }
