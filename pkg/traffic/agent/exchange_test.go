package agent

import (
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// An upstream sees whether its client ended in order or with a reset, even while neither side
// speaks. Otherwise it would wait for ever.
func TestUpstreamsSeeHowTheirClientsEnd(t *testing.T) {
	t.Parallel()
	const head = "X / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n"
	for name, sent := range map[string]string{
		"in a body with a length": head + "Content-Length: 100\r\n\r\nabc",
		"in a chunk":              head + "Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
		"before the answer":       head + "\r\n",
		"after a body":            head + "Content-Length: 3\r\n\r\nabc",
		"after chunks":            head + "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
		"after an unclear chunk":  head + "Transfer-Encoding: chunked\r\n\r\n1\na\n",
	} {
		for end, hangUp := range map[string]func(*net.TCPConn) error{
			"in order": func(c *net.TCPConn) error { return c.CloseWrite() },
			"with a reset": func(c *net.TCPConn) error {
				_ = c.SetLinger(0)
				return c.Close()
			},
		} {
			t.Run(end+", "+name, func(t *testing.T) {
				t.Parallel()
				got := make(chan error, 1)
				next := func() error {
					select {
					case err := <-got:
						return err
					case <-time.After(patience):
						return os.ErrDeadlineExceeded
					}
				}
				alice := newLaptop(t, ok, func(c net.Conn) {
					all := make([]byte, len(sent))
					if _, err := io.ReadFull(c, all); err != nil {
						got <- err
						return
					}
					assert.Equal(t, sent, string(all))
					got <- nil
					_, err := io.ReadAll(c)
					got <- err
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
				})
				p := newPod(t, "127.0.0.1", nobody(t), alice.authority)
				p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
				c := p.dial(t)
				_, err := io.WriteString(c, sent)
				require.NoError(t, err)
				require.NoError(t, next(), "all that was sent has come")
				require.NoError(t, hangUp(c))
				if err = next(); end == "in order" {
					require.NoError(t, err)
					answer, err := io.ReadAll(c)
					require.NoError(t, err)
					assert.Equal(t, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", string(answer))
				} else if err != nil {
					require.True(t, errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET), err)
				}
			})
		}
	}
}

// An idle connection costs next to nothing, however many there are: the app's pod pays for them.
func TestIdleConnectionsHoldNoBuffers(t *testing.T) {
	alice := newLaptop(t, ok, answers("alice"))
	p := newPod(t, "127.0.0.1", app(t), alice.authority)
	p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
	heap := func() uint64 {
		for range 3 { // what is pooled goes with the second
			runtime.GC()
		}
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const most, each = 100, 32 << 10 // with what the client and the app hold for each
	before := heap()
	for range most {
		b := p.browse(t)
		// A body in chunks the passthrough gives away.
		_, err := io.WriteString(b, "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
		require.NoError(t, err)
		require.Equal(t, "app / ", b.answer(t))
	}
	require.Eventually(t, func() bool { return int64(heap())-int64(before) < most*each }, patience, 10*time.Millisecond)
}
