package vif

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// After so much time in which less than quietBytes came, memory that a load has left behind is given back to the system. The runtime
	// would take minutes for that, and need another load to begin.
	quietTime  = 5 * time.Second
	quietBytes = 1 << 20
	// spareMemory is what a process may keep for the next load, in bytes.
	spareMemory = 2 << 20
)

// memory watches for the end of a load.
type memory struct {
	received uint64
	since    time.Time
	// worked says that there was a load, or the start, since the program was last let go.
	worked bool
	sample [1]metrics.Sample
}

// note is told how many bytes have come in all.
func (m *memory) note(received uint64, now time.Time) {
	if received-m.received > quietBytes || received < m.received || m.since.IsZero() {
		m.received, m.since, m.worked = received, now, true
		return
	}
	if now.Sub(m.since) < quietTime {
		return
	}
	m.received, m.since = received, now
	m.sample[0].Name = "/memory/classes/heap/free:bytes"
	metrics.Read(m.sample[:])
	if m.sample[0].Value.Uint64() > spareMemory {
		runtime.GC() // what pools keep is let go by the second of two
		debug.FreeOSMemory()
	}
	if m.worked {
		m.worked = false
		letProgramGo()
	}
}
