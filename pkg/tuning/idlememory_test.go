package tuning

import (
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// makeGarbage leaves n bytes of free memory behind.
func makeGarbage(n int) {
	var all [][]byte
	for range n >> 16 {
		all = append(all, make([]byte, 1<<16))
	}
	runtime.KeepAlive(all) // the last use: the collection below frees it
	runtime.GC()
}

func TestIdleMemoryReturnsFreeMemory(t *testing.T) {
	var m IdleMemory
	start := time.Now()
	m.Note(0, start)
	makeGarbage(64 << 20)
	m.Note(0, start.Add(quietTime))
	require.Less(t, m.freeBytes(), uint64(16<<20))
}

func TestIdleMemoryWaitsForTheEndOfTheLoad(t *testing.T) {
	var m IdleMemory
	start := time.Now()
	for _, step := range []struct {
		at     time.Duration
		passed uint64
		idle   bool
		why    string
	}{
		{at: 0, passed: 0, idle: false, why: "the watch begins"},
		{at: 1 * time.Second, passed: 64 << 20, idle: false, why: "there is a load"},
		{at: 5 * time.Second, passed: 64 << 20, idle: false, why: "the load may go on"},
		{at: 6 * time.Second, passed: 64<<20 + 1000, idle: true, why: "little has passed for long enough"},
		{at: 7 * time.Second, passed: 64<<20 + 1000, idle: false, why: "memory was just returned"},
		{at: 11 * time.Second, passed: 64<<20 + 1000, idle: true, why: "another quiet time has passed"},
		{at: 20 * time.Second, passed: 128 << 20, idle: false, why: "there is a load again"},
		{at: 26 * time.Second, passed: 100, idle: false, why: "the count starts again"},
	} {
		require.Equal(t, step.idle, m.idle(step.passed, start.Add(step.at)), step.why)
	}
}
