package agent

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/traffic/agent/exchange"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// The app's own limits apply to heads that never end: the app gets them when they take long, and
// when there are too many.
func TestIncompleteHeadsReachTheApp(t *testing.T) {
	const half = "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\nCookie: "
	came := make(chan string, 100)
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
		all := make([]byte, 10)
		if _, err := io.ReadFull(c, all); err == nil {
			came <- string(all)
			_, _ = io.WriteString(c, "HTTP/1.1 431 Too Large\r\nConnection: close\r\n\r\n")
		}
	})
	pod := func(t *testing.T, timeout time.Duration) *pod {
		alice := newLaptop(t, ok, answers("alice"))
		p := newPod(t, "127.0.0.1", port, alice.authority)
		p.limits.headTimeout = timeout
		p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
		return p
	}
	t.Run("slow", func(t *testing.T) {
		p := pod(t, 50*time.Millisecond)
		c := p.dial(t)
		_, err := io.WriteString(c, half+"slow")
		require.NoError(t, err)
		answer, _ := io.ReadAll(c)
		require.Contains(t, string(answer), "431")
		require.Equal(t, half[:10], <-came)
		require.Zero(t, p.limits.heads.Used())
	})
	t.Run("many", func(t *testing.T) {
		p := pod(t, time.Hour)
		const size = 512 << 10
		var all []*net.TCPConn
		for range 2 * exchange.MaxIncompleteHeads / size {
			c := p.dial(t)
			_, _ = io.WriteString(c, half+strings.Repeat("x", size)) // the app may have closed it
			all = append(all, c)
			assert.LessOrEqual(t, p.limits.heads.Used(), int64(exchange.MaxIncompleteHeads))
		}
		require.Equal(t, half[:10], <-came, "what is too much is the app's")
		for _, c := range all {
			_ = c.Close()
		}
		require.Eventually(t, func() bool { return p.limits.heads.Used() == 0 }, patience, time.Millisecond)
		b := p.browse(t)
		_, err := io.WriteString(b, half+strings.Repeat("x", 100_000)+"\r\n\r\n")
		require.NoError(t, err)
		require.Equal(t, "alice / ", b.answer(t))
	})
}
