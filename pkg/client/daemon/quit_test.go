package daemon

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster"
	"github.com/detour-dev/detour/pkg/client/daemon/cluster/clustertest"
	"github.com/detour-dev/detour/pkg/client/ipc"
	daemonv1 "github.com/detour-dev/detour/rpc/daemon/v1"
)

// silentServer accepts connections and answers nothing, like a proxy before a network that has gone
// away. accepted is closed at the first connection.
func silentServer(t *testing.T) (address string, accepted <-chan struct{}) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	once := make(chan struct{})
	var open []io.Closer
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for first := true; ; first = false {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open = append(open, c)
			if first {
				close(once)
			}
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		accepting.Wait()
		for _, c := range open {
			_ = c.Close()
		}
	})
	return l.Addr().String(), once
}

// within fails if f takes minutes.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }() // the test waits for it, or fails
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatal(what + " waits for an API server that does not answer")
	}
}

func TestCloseOfASilentCluster(t *testing.T) {
	api := clustertest.New(t)
	s := sessionOf(t, api, detour.SessionStatus{})
	api.Break(clustertest.Silent)
	var err error
	within(t, "close", func() { err = s.close(context.Background()) })
	require.True(t, cluster.IsSilent(err), "%v", err)
	require.True(t, s.network.(*standing).closed, "the laptop is restored")
	require.True(t, s.isEnded())
}

// A session that is being made again does not keep a user from quitting.
func TestQuitWhileReconnecting(t *testing.T) {
	address, accepted := silentServer(t)
	dir := t.TempDir()
	old := sessionAt(t, kubeconfigOf("server: 'http://"+address+"'", "token: t"))
	old.ended = true
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s := &Server{paths: ipc.Paths{Run: dir, State: dir}, log: slog.New(slog.DiscardHandler), quit: cancel}
	s.busy, s.idle = context.WithCancel(ctx)
	s.put(old)
	var reconnecting sync.WaitGroup
	reconnecting.Go(func() { s.reconnect(s.busy, old) })
	<-accepted
	var r *daemonv1.QuitResponse
	within(t, "quit", func() { r, _ = s.Quit(context.Background(), &daemonv1.QuitRequest{}) })
	require.NotNil(t, r)
	reconnecting.Wait()
	require.Nil(t, s.get())
}
