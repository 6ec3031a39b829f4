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

	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/relay/mux"
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

// A laptop that quits waits for the answer that its process is about to give, and not for clients that keep a connection.
func TestFinish(t *testing.T) {
	process, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ask := make(chan struct{})
	go func() {
		for {
			c, err := process.Accept()
			if err != nil {
				return
			}
			go func() {
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
	r := &relayServer{log: slog.New(slog.DiscardHandler), dial: new(net.Dialer).DialContext, ports: map[string]uint16{}, conns: map[io.Closer]string{}, timer: map[string]*time.Timer{}}
	r.add("one", uint16(process.Addr().(*net.TCPAddr).Port))
	r.open.Go(func() { r.accept(l) })
	r.listeners = append(r.listeners, l)
	t.Cleanup(func() { r.close(); _ = process.Close() })

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
	r.remove("one") // the intercept is over

	finished := make(chan struct{})
	go func() { r.finish(t.Context()); close(finished) }()
	select {
	case <-finished:
		t.Fatal("the answer was not waited for")
	case <-time.After(3 * quietAfter):
	}
	ask <- struct{}{}
	<-finished
	_, err = io.ReadFull(stream, make([]byte, 6))
	require.NoError(t, err)
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
