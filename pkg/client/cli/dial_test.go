package cli

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/client/daemon"
)

// A daemon that was killed keeps its socket open for a moment, and resets whoever comes.
func TestADaemonThatIsDyingIsNone(t *testing.T) {
	paths := daemon.Paths{Run: t.TempDir(), State: t.TempDir()}
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

	conn, err := reach(paths)
	require.NoError(t, err)
	require.Nil(t, conn)
}

func TestADaemonThatIsStoppedIsSaid(t *testing.T) {
	paths := daemon.Paths{Run: t.TempDir(), State: t.TempDir()}
	socket, err := net.Listen("unix", paths.Socket()) // nobody accepts
	require.NoError(t, err)
	defer socket.Close()

	conn, err := reach(paths)
	require.ErrorContains(t, err, "the daemon does not answer")
	require.Nil(t, conn)
	require.FileExists(t, paths.Socket(), "it is not taken for a dead one's")
}
