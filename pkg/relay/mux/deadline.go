package mux

import (
	"sync"
	"time"
)

// deadline is when somebody who waits gives up. lock guards it.
type deadline struct {
	lock    sync.Locker
	changed func() // wakes who waits, under lock
	at      time.Time
	timer   *time.Timer
}

func (d *deadline) set(t time.Time) {
	d.lock.Lock()
	defer d.lock.Unlock()
	d.at = t
	d.stop()
	if !t.IsZero() {
		d.timer = time.AfterFunc(max(0, time.Until(t)), func() {
			d.lock.Lock()
			defer d.lock.Unlock()
			d.changed()
		})
	}
	d.changed()
}

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

func (d *deadline) over() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }
