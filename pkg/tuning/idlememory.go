package tuning

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// When fewer than quietBytes have passed for quietTime, the memory that a load has left behind goes back to the
	// system. The runtime alone takes minutes for that, and needs another load to begin.
	quietTime  = 5 * time.Second
	quietBytes = 1 << 20
	// spareMemory is what a process may keep for the next load, in bytes.
	spareMemory = 2 << 20
)

// IdleMemory watches for the end of a load and then gives free heap memory back to the system. The zero value is ready.
// It is for one goroutine.
type IdleMemory struct {
	passed uint64
	since  time.Time
	sample [1]metrics.Sample
}

// Note takes the number of bytes that have passed in all until now.
func (m *IdleMemory) Note(passed uint64, now time.Time) {
	if passed-m.passed > quietBytes || passed < m.passed || m.since.IsZero() {
		m.passed, m.since = passed, now
		return
	}
	if now.Sub(m.since) < quietTime {
		return
	}
	m.passed, m.since = passed, now
	m.sample[0].Name = "/memory/classes/heap/free:bytes"
	metrics.Read(m.sample[:])
	if m.sample[0].Value.Uint64() > spareMemory {
		runtime.GC() // a pool gives up its contents at the second of two collections
		debug.FreeOSMemory()
	}
}
