package daemon

import (
	"bufio"
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/relay/datagram"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// Flows on a relayed connection reach the local port each from a port of its own, and where nobody listens the agent is told.
func TestDatagrams(t *testing.T) {
	const patience = 10 * time.Second
	local, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	port := uint16(local.LocalAddr().(*net.UDPAddr).Port)
	var serving sync.WaitGroup
	serving.Go(func() {
		for b := make([]byte, datagram.MaxPayload); ; {
			n, from, err := local.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = local.WriteTo(append([]byte(from.String()+" "), b[:n]...), from)
		}
	})
	t.Cleanup(func() { _ = local.Close(); serving.Wait() })

	var d net.Dialer
	r := &relayServer{log: slog.New(slog.DiscardHandler), dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return d.DialContext(ctx, network, address)
	}, ports: map[string]uint16{}, conns: map[io.Closer]string{}, timer: map[string]*time.Timer{}}
	r.add("uid", port)
	agent, here := net.Pipe()
	serving.Go(func() { r.serve(here); _ = here.Close() })
	t.Cleanup(func() { _ = agent.Close() })
	require.NoError(t, agent.SetDeadline(time.Now().Add(patience)))
	require.NoError(t, relay.WriteHeader(agent, &agentv1.RelayHeader{InterceptUid: "uid", Datagrams: true}))
	status, err := relay.ReadStatus(agent)
	require.NoError(t, err)
	require.Equal(t, agentv1.RelayStatus_RELAY_STATUS_OK, status)

	in, buffer := bufio.NewReader(agent), make([]byte, datagram.MaxPayload)
	ask := func(f datagram.Frame) datagram.Frame {
		t.Helper()
		_, err := agent.Write(f.Append(nil))
		require.NoError(t, err)
		answer, err := datagram.Read(in, buffer)
		require.NoError(t, err)
		answer.Payload = append([]byte{}, answer.Payload...)
		return answer
	}
	assert.Equal(t, datagram.Pong, ask(datagram.Frame{Kind: datagram.Ping}).Kind)
	one, again, two := ask(datagram.Frame{Flow: 1, Payload: []byte("a")}), ask(datagram.Frame{Flow: 1, Payload: []byte("a")}), ask(datagram.Frame{Flow: 2, Payload: []byte("a")})
	assert.EqualValues(t, 1, one.Flow)
	assert.EqualValues(t, 2, two.Flow)
	assert.Contains(t, string(one.Payload), "127.0.0.1:")
	assert.Equal(t, one, again, "a flow keeps its port")
	assert.NotEqual(t, one.Payload, two.Payload, "which no other has")

	require.NoError(t, local.Close())
	for range 3 {
		f := ask(datagram.Frame{Flow: 1, Payload: []byte("a")})
		assert.Equal(t, datagram.Refused, f.Kind)
		assert.EqualValues(t, 1, f.Flow)
	}
}
