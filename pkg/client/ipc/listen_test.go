package ipc

import (
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two commands that run at the same time start a daemon each.
func TestOneOfTwoDaemonsStartedAtOnceListens(t *testing.T) {
	for range 100 {
		dir := t.TempDir()
		p := Paths{Run: dir, State: dir, Rootless: true}
		var starting sync.WaitGroup
		var listeners [2]net.Listener
		for i := range listeners {
			starting.Go(func() { listeners[i], _ = Listen(p, func() error { return nil }) })
		}
		starting.Wait()
		count := 0
		for _, l := range listeners {
			if l != nil {
				count++
				_ = l.Close()
			}
		}
		require.Equal(t, 1, count)
	}
}
