package daemon

import (
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/traffic/relay"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// full is a listener of a process that has too many files open for a while.
type full struct {
	net.Listener
	times int
}

func (f *full) Accept() (net.Conn, error) {
	if f.times--; f.times >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: syscall.EMFILE}
	}
	return f.Listener.Accept()
}

// Relayed connections are taken again after some could not be.
func TestAcceptGoesOn(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	r := &relayServer{log: slog.New(slog.DiscardHandler), ports: map[string]uint16{}, conns: map[io.Closer]string{}, timer: map[string]*time.Timer{}}
	var accepting sync.WaitGroup
	accepting.Go(func() { r.accept(&full{Listener: l, times: 3}) })
	t.Cleanup(func() { _ = l.Close(); accepting.Wait(); r.open.Wait() })

	agent, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer agent.Close()
	require.NoError(t, agent.SetDeadline(time.Now().Add(20*time.Second)))
	require.NoError(t, relay.WriteHeader(agent, &agentv1.RelayHeader{InterceptUid: "unknown"}))
	status, err := relay.ReadStatus(agent)
	require.NoError(t, err)
	require.Equal(t, agentv1.RelayStatus_RELAY_STATUS_UNKNOWN_INTERCEPT, status)
}
