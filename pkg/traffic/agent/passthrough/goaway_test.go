//go:build linux

package passthrough

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// http2Server serves unencrypted HTTP/2 and answers with its name. The answer to /slow ends when
// slow is closed.
func http2Server(t *testing.T, name string, slow <-chan struct{}) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	handler := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/slow" {
			fmt.Fprint(w, "beginning, ")
			_ = http.NewResponseController(w).Flush()
			<-slow
		}
		fmt.Fprint(w, name)
	}
	s := &http.Server{
		Protocols:         protocols,
		ReadHeaderTimeout: time.Second,
		Handler:           http.HandlerFunc(handler),
	}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(l) })
	t.Cleanup(func() { _ = s.Close(); serving.Wait() })
	return l
}

// A client keeps its HTTP/2 connection open. Its next request moves to the laptop. The request in
// progress ends on the old connection.
func TestHTTP2ClientMovesWithItsNextRequest(t *testing.T) {
	slow := make(chan struct{})
	app, laptop := http2Server(t, "app", slow), http2Server(t, "laptop", slow)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	var intercepted atomic.Bool
	changes := make(chan struct{})
	running.Go(func() {
		assert.NoError(t, Serve(ctx, Config{
			Listeners: map[uint16]*net.TCPListener{uint16(app.Addr().(*net.TCPAddr).Port): l.(*net.TCPListener)},
			Policy: func(uint16) Policy {
				if intercepted.Load() {
					return HandOverAll
				}
				return ToApp
			},
			Changes: changes,
			HandOver: func(h Handover) {
				running.Go(func() {
					defer h.Client.Close()
					c, err := net.Dial("tcp", laptop.Addr().String())
					if !assert.NoError(t, err) {
						return
					}
					running.Go(func() { _, _ = io.Copy(c, h.Client); _ = c.Close() })
					_, _ = io.Copy(h.Client, c)
				})
			},
		}))
	})
	t.Cleanup(func() { stop(); running.Wait(); _ = l.Close() })

	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	get := func(path string) *http.Response {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+l.Addr().String()+path, nil)
		require.NoError(t, err)
		resp, err := transport.RoundTrip(req)
		require.NoError(t, err)
		return resp
	}
	text := func(resp *http.Response) string {
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, "app", text(get("/")))
	slowAnswer := get("/slow")

	intercepted.Store(true)
	changes <- struct{}{}
	require.Eventually(t, func() bool { return text(get("/")) == "laptop" }, 30*time.Second, time.Millisecond)
	for range 20 {
		require.Equal(t, "laptop", text(get("/")))
	}
	close(slow)
	require.Equal(t, "beginning, app", text(slowAnswer))
}
