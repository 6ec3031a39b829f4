package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/agentconfig"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// Without an intercept the agent must not be noticed: every byte arrives, and each side may end
// its direction while the other still speaks.
func TestPassthroughLosesNothing(t *testing.T) {
	question, answer := make([]byte, 3<<20), make([]byte, 5<<20)
	_, _ = rand.Read(question)
	_, _ = rand.Read(answer)

	t.Run("the client ends first", func(t *testing.T) {
		received := make(chan []byte, 1)
		port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
			got, _ := io.ReadAll(c) // returns because the end of the client's direction was passed on
			received <- got
			_, _ = c.Write(answer)
		})
		c := newPod(t, "127.0.0.1", port, nil).dial(t)
		_, err := c.Write(question)
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(question, <-received), "the app got what the client sent")
		assert.True(t, bytes.Equal(answer, got), "the client got what the app sent")
	})

	t.Run("the app ends first", func(t *testing.T) {
		received := make(chan []byte, 1)
		port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
			_, _ = c.Write(answer)
			_ = c.CloseWrite()
			got, _ := io.ReadAll(c)
			received <- got
		})
		c := newPod(t, "127.0.0.1", port, nil).dial(t)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(answer, got))
		_, err = c.Write(question)
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		assert.True(t, bytes.Equal(question, <-received), "the client may go on after the app has ended")
	})

	t.Run("both at once", func(t *testing.T) {
		port := serve(t, "127.0.0.1", func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
		c := newPod(t, "127.0.0.1", port, nil).dial(t)
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(question)
			_ = c.CloseWrite()
			sent <- err
		}()
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		require.NoError(t, <-sent)
		assert.True(t, bytes.Equal(question, got))
	})
}

// A server that speaks first, as SSH and MySQL do, is heard although the client has sent nothing
// that shows its protocol.
func TestServerSpeaksFirst(t *testing.T) {
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "SSH-2.0-server\r\n")
		_, _ = io.Copy(c, c)
	})
	c := newPod(t, "127.0.0.1", port, nil).dial(t)
	greeting := make([]byte, 16)
	_, err := io.ReadFull(c, greeting)
	require.NoError(t, err)
	assert.Equal(t, "SSH-2.0-server\r\n", string(greeting))
	_, err = io.WriteString(c, "SSH-2.0-client\r\n")
	require.NoError(t, err)
	_, err = io.ReadFull(c, greeting)
	require.NoError(t, err)
	assert.Equal(t, "SSH-2.0-client\r\n", string(greeting))
}

// A reset must not become a clean end of the stream: the other side would take half an answer
// for a whole one.
func TestResetStaysReset(t *testing.T) {
	t.Run("of the client", func(t *testing.T) {
		began, ended := make(chan struct{}), make(chan error, 1)
		port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 5))
			close(began)
			_, err := c.Read(make([]byte, 1))
			ended <- err
		})
		c := newPod(t, "127.0.0.1", port, nil).dial(t)
		_, err := io.WriteString(c, "half ")
		require.NoError(t, err)
		<-began
		require.NoError(t, c.SetLinger(0))
		require.NoError(t, c.Close())
		require.ErrorIs(t, <-ended, syscall.ECONNRESET)
	})

	t.Run("of the app", func(t *testing.T) {
		port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 5))
			_ = c.SetLinger(0)
		})
		c := newPod(t, "127.0.0.1", port, nil).dial(t)
		_, err := io.WriteString(c, "half ")
		require.NoError(t, err)
		_, err = c.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})

	t.Run("of the app, in the middle of its answer", func(t *testing.T) {
		reset := make(chan struct{})
		port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 5))
			_, _ = io.WriteString(c, "half ")
			<-reset
			_ = c.SetLinger(0)
		})
		c := newPod(t, "127.0.0.1", port, nil).dial(t)
		_, err := io.WriteString(c, "half ")
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 5))
		require.NoError(t, err)
		close(reset)
		_, err = c.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

// The agent has accepted a connection before it knows that the app refuses it. The refusal
// becomes a reset, and not a clean end.
func TestRefusalBecomesAReset(t *testing.T) {
	c, err := net.Dial("tcp", newPod(t, "127.0.0.1", nobody(t), nil).address)
	if err == nil { // else the reset was faster
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// An app may listen only on the pod's address. The agent listens on all addresses, and dials the
// address that the client dialed.
func TestAppOnOneAddress(t *testing.T) {
	for _, host := range []string{"127.0.0.2", "127.0.0.3"} {
		t.Run(host, func(t *testing.T) {
			port := serve(t, host, func(c *net.TCPConn) { answers("app on " + host)(c) })
			p := newPod(t, "", port, nil)
			_, own, err := net.SplitHostPort(p.address)
			require.NoError(t, err)
			p.address = net.JoinHostPort(host, own)
			assert.Equal(t, "app on "+host+" / ", p.browse(t).get(t, "/"))
		})
	}
}

// When the agent ends, so do its connections, idle or not.
func TestAgentEndsItsConnections(t *testing.T) {
	ended := make(chan error, 2)
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "hello")
		_, err := c.Read(make([]byte, 1))
		ended <- err
	})
	p := newPod(t, "127.0.0.1", port, nil)
	clients := []*net.TCPConn{p.dial(t), p.dial(t)}
	for _, c := range clients {
		_, err := io.ReadFull(c, make([]byte, 5))
		require.NoError(t, err)
	}
	p.stop()
	for _, c := range clients {
		_, err := c.Read(make([]byte, 1))
		require.Error(t, err)
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
		require.NotErrorIs(t, <-ended, os.ErrDeadlineExceeded, "the app's side ended too")
	}
}

// Run returns what is wrong with a configuration, and serves nothing.
func TestRunRefusesAnInvalidConfiguration(t *testing.T) {
	err := Run(context.Background(), agentconfig.Config{CA: "not PEM"}, slog.New(slog.DiscardHandler))
	require.EqualError(t, err, "the configuration has no certificate authority")
}

// Each configuration is whole: ports that it does not name belong to the app.
func TestInterceptsAreByPort(t *testing.T) {
	a := newAgent(nil, nil)
	first := &agentv1.Intercept{Uid: "one", Port: 8080, RelayAddress: "10.0.0.1:8083", Token: []byte("a")}
	a.table.Set(
		[]*agentv1.Intercept{first, {Uid: "two", Port: 9090, RelayAddress: "10.0.0.1:8083", Token: []byte("b")}})
	assert.Equal(t, "one", a.table.Global(8080).Uid)
	assert.Equal(t, "two", a.table.Global(9090).Uid)
	assert.Nil(t, a.table.Global(80))

	a.table.Set([]*agentv1.Intercept{first})
	assert.Equal(t, "one", a.table.Global(8080).Uid)
	assert.Nil(t, a.table.Global(9090), "each configuration is whole")
}
