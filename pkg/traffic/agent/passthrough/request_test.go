//go:build linux

package passthrough

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
	"github.com/detour-dev/detour/pkg/traffic/agent/sniff"
)

// serveByRequest serves a passthrough with the policy ByRequest in front of an app. It hands over
// requests with the header X-Dev.
func serveByRequest(t *testing.T, app net.Listener) (address string, handovers chan Handover) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	handovers = make(chan Handover, 1)
	serving.Go(func() {
		assert.NoError(t, Serve(ctx, Config{
			Listeners: map[uint16]*net.TCPListener{uint16(app.Addr().(*net.TCPAddr).Port): l.(*net.TCPListener)},
			Policy:    func(uint16) Policy { return ByRequest },
			Choose:    func(_ uint16, r *http1.Head) (any, bool) { return "chosen", !r.Has("X-Dev") },
			HandOver:  func(h Handover) { handovers <- h },
		}))
	})
	t.Cleanup(func() {
		stop()
		serving.Wait()
		_ = l.Close()
		select {
		case h := <-handovers: // the test has failed
			_ = errors.Join(h.Client.Close(), h.App.Close())
		default:
		}
	})
	return l.Addr().String(), handovers
}

const (
	plain  = "GET /a HTTP/1.1\r\nHost: app\r\n\r\n"
	marked = "GET /b HTTP/1.1\r\nHost: app\r\nX-Dev: alice\r\n\r\n"
)

// newWebApp answers with the path and the body of the request. The answer to /slow is in chunks,
// and the answer to /end ends with its connection. Both send their second part after a receive from
// more.
func newWebApp(t *testing.T, more <-chan struct{}) net.Listener {
	return newApp(t, func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, _ := io.ReadAll(r.Body)
			switch r.URL.Path {
			case "/slow":
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nslow\r\n")
				<-more
				fmt.Fprintf(c, "0\r\n\r\n")
			case "/end":
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\n\r\nto the ")
				<-more
				fmt.Fprint(c, "end")
				return
			default:
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s%s",
					len(r.URL.Path)+len(body), r.URL.Path, body)
			}
		}
	})
}

func TestEachRequestIsDecidedByItself(t *testing.T) {
	for _, test := range []struct{ name, before string }{
		{name: "the first request", before: ""},
		{name: "a request after another", before: plain},
		{
			name:   "a request after one with a body",
			before: "POST /a HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			address, handovers := serveByRequest(t, newWebApp(t, nil))
			c := dial(t, address)
			in := bufio.NewReader(c)
			for range 3 {
				if test.before == "" {
					break
				}
				_, err := io.WriteString(c, test.before)
				require.NoError(t, err)
				answer, err := http.ReadResponse(in, nil)
				require.NoError(t, err)
				body, err := io.ReadAll(answer.Body)
				require.NoError(t, err)
				require.Contains(t, string(body), "/a")
				require.Empty(t, handovers)
			}
			_, err := io.WriteString(c, marked)
			require.NoError(t, err)
			h := <-handovers
			defer h.Client.Close()
			defer h.App.Close()
			require.Equal(t, marked, string(h.First))
			require.Equal(t, test.before != "", h.Used)
			require.Equal(t, marked, string(h.Head.Raw), "the head is parsed already")
			require.Equal(t, "chosen", h.Choice)

			// The handover has the connection to the app, which expects a request.
			_, err = io.WriteString(h.App, plain)
			require.NoError(t, err)
			answer, err := http.ReadResponse(bufio.NewReader(h.App), nil)
			require.NoError(t, err)
			body, err := io.ReadAll(answer.Body)
			require.NoError(t, err)
			require.Equal(t, "/a", string(body))
		})
	}
}

// A client may send a request before it has the answer to the one before (pipelining). It receives
// the answers in order, from whichever upstream.
func TestRequestWaitsForTheAnswersBeforeIt(t *testing.T) {
	more := make(chan struct{})
	address, handovers := serveByRequest(t, newWebApp(t, more))
	c := dial(t, address)
	in := bufio.NewReader(c)
	_, err := io.WriteString(c, strings.Replace(plain, "/a", "/slow", 1))
	require.NoError(t, err)
	answer, err := http.ReadResponse(in, nil)
	require.NoError(t, err)
	first := make([]byte, 4)
	_, err = io.ReadFull(answer.Body, first)
	require.NoError(t, err)
	_, err = io.WriteString(c, marked)
	require.NoError(t, err)
	require.Never(t, func() bool { return len(handovers) > 0 }, 50*time.Millisecond, 10*time.Millisecond)
	more <- struct{}{}
	_, err = io.ReadAll(answer.Body)
	require.NoError(t, err)
	h := <-handovers
	defer h.Client.Close()
	defer h.App.Close()
	require.Equal(t, marked, string(h.First))
}

// After an answer that ends with its connection, the app receives the bytes of the client, as
// without the agent.
func TestRequestAfterAnAnswerWithoutAnEndIsForTheApp(t *testing.T) {
	more := make(chan struct{})
	address, handovers := serveByRequest(t, newWebApp(t, more))
	c := dial(t, address)
	in := bufio.NewReader(c)
	_, err := io.WriteString(c, strings.Replace(plain, "/a", "/end", 1))
	require.NoError(t, err)
	answer, err := http.ReadResponse(in, nil)
	require.NoError(t, err)
	_, err = io.WriteString(c, marked)
	require.NoError(t, err)
	more <- struct{}{}
	body := make([]byte, len("to the end"))
	_, err = io.ReadFull(answer.Body, body)
	require.NoError(t, err)
	require.Equal(t, "to the end", string(body))
	require.Empty(t, handovers)
}

// The passthrough decides only about bytes that are exactly one simple request. It hands over a
// connection that begins with anything else that may be HTTP, or with TLS.
func TestRequestThatIsNotSimpleIsHandedOver(t *testing.T) {
	for _, test := range []struct{ name, sent string }{
		{name: "half a head", sent: plain[:20]},
		{name: "half a line", sent: "GET /a"},
		{name: "half a body", sent: "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 9\r\n\r\nhalf"},
		{name: "chunks", sent: "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
		{name: "two at once", sent: plain + plain},
		{
			name: "an upgrade",
			sent: "GET / HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
		},
		{
			name: "an expectation",
			sent: "PUT / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
		},
		{name: "two lengths", sent: "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n"},
		{name: "a tunnel", sent: "CONNECT db:5432 HTTP/1.1\r\nHost: db\r\n\r\n"},
		{name: "HTTP/2", sent: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
		{name: "TLS", sent: "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
		{name: "a line that is not a request line", sent: "SET key value\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			address, handovers := serveByRequest(t, newWebApp(t, nil))
			c := dial(t, address)
			_, err := io.WriteString(c, test.sent)
			require.NoError(t, err)
			h := <-handovers
			require.Equal(t, test.sent, string(h.First))
			require.False(t, h.Used)
			require.NoError(t, h.Client.Close())
			require.NoError(t, h.App.Close())
		})
	}
}

func TestOtherProtocolsAreForTheApp(t *testing.T) {
	address, handovers := serveByRequest(t, newApp(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }))
	c := dial(t, address)
	for range 3 {
		_, err := io.WriteString(c, "*1\r\n$4\r\nPING\r\n")
		require.NoError(t, err)
		_, err = io.ReadFull(c, make([]byte, 14))
		require.NoError(t, err)
	}
	_, err := io.WriteString(c, marked)
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, len(marked)))
	require.NoError(t, err)
	require.Empty(t, handovers)
}

// A laptop may want the requests of an app that does not listen.
func TestClientOfAnAppThatDoesNotListenIsHandedOver(t *testing.T) {
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())
	address, handovers := serveByRequest(t, closed)
	c := dial(t, address)
	h := <-handovers
	require.Nil(t, h.App)
	_, err = io.WriteString(h.Client, "laptop")
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 6))
	require.NoError(t, err)
	require.NoError(t, h.Client.Close())
}

// An HTTP/2 server may send its preface before the client has sent anything. If the connection is
// handed over, the client receives another preface, so it must not have received the first one.
func TestPrefaceOfAnHTTP2ServerWaitsForTheClient(t *testing.T) {
	const settings = "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00"
	prefaceApp := newApp(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, settings)
		_, _ = io.Copy(c, c)
	})
	t.Run("the connection is handed over", func(t *testing.T) {
		address, handovers := serveByRequest(t, prefaceApp)
		c := dial(t, address)
		time.Sleep(20 * time.Millisecond) // until the loop has read the preface
		_, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		require.NoError(t, err)
		h := <-handovers
		require.Nil(t, h.App)
		_, err = io.WriteString(h.Client, "laptop")
		require.NoError(t, err)
		received := make([]byte, len("laptop"))
		_, err = io.ReadFull(c, received)
		require.NoError(t, err)
		require.Equal(t, "laptop", string(received))
		require.NoError(t, h.Client.Close())
	})
	t.Run("the connection is for the app", func(t *testing.T) {
		address, _ := serveByRequest(t, prefaceApp)
		c := dial(t, address)
		_, err := io.WriteString(c, "\x01\x02")
		require.NoError(t, err)
		received := make([]byte, len(settings)+2)
		_, err = io.ReadFull(c, received)
		require.NoError(t, err)
		require.Equal(t, settings+"\x01\x02", string(received))
	})
	t.Run("the client closes without sending", func(t *testing.T) {
		address, _ := serveByRequest(t, prefaceApp)
		c := dial(t, address)
		require.NoError(t, c.CloseWrite())
		received, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, settings, string(received))
	})
	t.Run("the first bytes of another protocol do not wait", func(t *testing.T) {
		address, _ := serveByRequest(t, newApp(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "220 mail\r\n")
			_, _ = io.Copy(io.Discard, c)
		}))
		received := make([]byte, len("220 mail\r\n"))
		_, err := io.ReadFull(dial(t, address), received)
		require.NoError(t, err)
	})
}

func TestServerThatSendsFirstIsNotHTTP1(t *testing.T) {
	for _, test := range []struct {
		name  string
		first string
		want  sniff.Protocol
	}{
		{name: "HTTP/2", first: "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", want: sniff.HTTP2},
		{name: "an HTTP/1 request", first: plain, want: sniff.Other},
	} {
		t.Run(test.name, func(t *testing.T) {
			var h httpState
			h.feedApp([]byte("greeting"))
			h.feedClient([]byte(test.first))
			require.Equal(t, test.want, h.protocol)
		})
	}
}
