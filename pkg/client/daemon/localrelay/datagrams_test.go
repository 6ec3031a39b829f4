package localrelay

import (
	"bufio"
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

// Each flow on a relayed connection reaches the local port from a port of its own. The agent
// receives a refusal if nobody listens.
func TestDatagramFlows(t *testing.T) {
	const limit = 10 * time.Second
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

	r := newServer(new(net.Dialer).DialContext, slog.New(slog.DiscardHandler))
	t.Cleanup(r.Close)
	r.Add("uid", port)
	agent, here := net.Pipe()
	serving.Go(func() { r.serve(here); _ = here.Close() })
	t.Cleanup(func() { _ = agent.Close() })
	require.NoError(t, agent.SetDeadline(time.Now().Add(limit)))
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
	data := func(flow uint32) datagram.Frame { return datagram.Frame{Flow: flow, Payload: []byte("a")} }
	one, again, two := ask(data(1)), ask(data(1)), ask(data(2))
	assert.EqualValues(t, 1, one.Flow)
	assert.EqualValues(t, 2, two.Flow)
	assert.Contains(t, string(one.Payload), "127.0.0.1:")
	assert.Equal(t, one, again, "a flow keeps its port")
	assert.NotEqual(t, one.Payload, two.Payload, "no other flow has it")

	require.NoError(t, local.Close())
	for range 3 {
		f := ask(data(1))
		assert.Equal(t, datagram.Refused, f.Kind)
		assert.EqualValues(t, 1, f.Flow)
	}
}
