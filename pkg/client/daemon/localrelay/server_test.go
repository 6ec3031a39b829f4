package localrelay

import (
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/relay/mux"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// full is the listener of a process that has too many open files for some calls.
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

// A laptop that quits waits for the answers of its processes, and not for clients that keep a
// connection open.
func TestDrainWaitsForAnswers(t *testing.T) {
	process, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ask := make(chan struct{})
	go func() { // ends when the process is closed
		for {
			c, err := process.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its connection
				defer c.Close()
				for got := make([]byte, 8); ; {
					if _, err := c.Read(got); err != nil {
						return
					}
					ask <- struct{}{}
					<-ask
					_, _ = c.Write([]byte("answer"))
				}
			}()
		}
	}()
	r := newServer(new(net.Dialer).DialContext, slog.New(slog.DiscardHandler))
	r.Add("one", uint16(process.Addr().(*net.TCPAddr).Port))
	r.serveListener(l)
	t.Cleanup(func() { r.Close(); _ = process.Close() })

	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, relay.WriteHeader(c, &agentv1.RelayHeader{InterceptUid: "one", Multiplexed: true}))
	status, err := relay.ReadStatus(c)
	require.NoError(t, err)
	require.Equal(t, agentv1.RelayStatus_RELAY_STATUS_MULTIPLEXED, status)
	agent := mux.New(c, nil)
	var running sync.WaitGroup
	running.Go(func() { _ = agent.Run() })
	t.Cleanup(func() { _ = c.Close(); running.Wait() })
	stream, err := agent.Open(t.Context(), &agentv1.RelayHeader{})
	require.NoError(t, err)
	_, err = stream.Write([]byte("question"))
	require.NoError(t, err)
	<-ask
	r.Remove("one") // the intercept is over

	finished := make(chan struct{})
	go func() { r.Drain(t.Context()); close(finished) }() // the test waits for it
	select {
	case <-finished:
		t.Fatal("Drain did not wait for the answer")
	case <-time.After(3 * quietPeriod):
	}
	ask <- struct{}{}
	<-finished
	_, err = io.ReadFull(stream, make([]byte, 6))
	require.NoError(t, err)
}

func TestServerAcceptsAgainAfterErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	r := newServer(nil, slog.New(slog.DiscardHandler))
	r.serveListener(&full{Listener: l, times: 3})
	t.Cleanup(r.Close)

	agent, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer agent.Close()
	require.NoError(t, agent.SetDeadline(time.Now().Add(20*time.Second)))
	require.NoError(t, relay.WriteHeader(agent, &agentv1.RelayHeader{InterceptUid: "unknown"}))
	status, err := relay.ReadStatus(agent)
	require.NoError(t, err)
	require.Equal(t, agentv1.RelayStatus_RELAY_STATUS_UNKNOWN_INTERCEPT, status)
}
