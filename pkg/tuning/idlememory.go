package tuning

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// Memory of an idle process.
//
// A load leaves free memory behind that the process keeps. The runtime alone takes minutes to
// return it, and needs another load to begin. IdleMemory returns it a few seconds after the load.
//
// Gain: 2000 connections left 400 MB with the traffic-manager; with this and the small buffers of
// netx.Copy it keeps 34 MB. Cost: two collections after a load, and page faults at the start of the
// next one. Measured in the laboratory (docs/design/performance-log.md);
// TestIdleMemoryReturnsFreeMemory shows it.
const (
	// The process is idle after quietTime in which fewer than quietBytes have passed.
	quietTime  = 5 * time.Second
	quietBytes = 1 << 20
	// spareMemory is how many free bytes the process may keep for the next load.
	spareMemory = 2 << 20
)

// IdleMemory watches for the end of a load and then returns free memory to the system. The zero
// value is ready to use. It is for one goroutine.
type IdleMemory struct {
	passed uint64
	since  time.Time
	sample [1]metrics.Sample
}

// Note takes the number of bytes that have passed in all until now.
func (m *IdleMemory) Note(passed uint64, now time.Time) {
	if m.idle(passed, now) && m.freeBytes() > spareMemory {
		runtime.GC() // a pool gives up its contents at the second of two collections
		debug.FreeOSMemory()
	}
}

// idle reports whether another quietTime has passed without a load.
func (m *IdleMemory) idle(passed uint64, now time.Time) bool {
	if passed-m.passed > quietBytes || passed < m.passed || m.since.IsZero() {
		m.passed, m.since = passed, now
		return false
	}
	if now.Sub(m.since) < quietTime {
		return false
	}
	m.passed, m.since = passed, now
	return true
}

// freeBytes returns how much memory the process has free and has not returned.
func (m *IdleMemory) freeBytes() uint64 {
	m.sample[0].Name = "/memory/classes/heap/free:bytes"
	metrics.Read(m.sample[:])
	return m.sample[0].Value.Uint64()
}
