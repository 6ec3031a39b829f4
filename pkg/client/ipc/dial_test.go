package ipc

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A killed daemon keeps its socket open for a moment, and resets connections to it.
func TestDyingDaemonIsNoDaemon(t *testing.T) {
	paths := Paths{Run: t.TempDir(), State: t.TempDir()}
	socket, err := net.Listen("unix", paths.Socket())
	require.NoError(t, err)
	var ending sync.WaitGroup
	defer ending.Wait()
	ending.Go(func() {
		for range 5 {
			c, err := socket.Accept()
			if err != nil {
				return
			}
			time.Sleep(time.Millisecond)
			_ = c.Close()
		}
		_ = socket.Close()
	})

	conn, err := Dial(t.Context(), paths)
	require.ErrorIs(t, err, ErrNoDaemon)
	require.Nil(t, conn)
}

func TestStoppedDaemonIsReported(t *testing.T) {
	paths := Paths{Run: t.TempDir(), State: t.TempDir()}
	socket, err := net.Listen("unix", paths.Socket()) // nobody accepts
	require.NoError(t, err)
	defer socket.Close()

	conn, err := Dial(t.Context(), paths)
	require.ErrorContains(t, err, "the daemon does not answer")
	require.Nil(t, conn)
	require.FileExists(t, paths.Socket(), "its socket is not taken for that of a dead daemon")
}

func TestDialEndsWithItsContext(t *testing.T) {
	paths := Paths{Run: t.TempDir(), State: t.TempDir()}
	socket, err := net.Listen("unix", paths.Socket()) // nobody accepts
	require.NoError(t, err)
	defer socket.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()

	_, err = Dial(ctx, paths)
	require.ErrorIs(t, err, context.Canceled)
}
