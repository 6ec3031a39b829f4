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

// byRequest puts a passthrough in front of an app, of which requests with "X-Dev: alice" are given away.
func byRequest(t *testing.T, app net.Listener) (address string, taken chan Handover) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	taken = make(chan Handover, 1)
	serving.Go(func() {
		assert.NoError(t, Serve(ctx, Config{
			Listeners: map[uint16]*net.TCPListener{uint16(app.Addr().(*net.TCPAddr).Port): l.(*net.TCPListener)},
			Owner:     func(uint16) Owner { return ByRequest },
			Choose:    func(_ uint16, r *http1.Head) (any, bool) { return "chosen", !r.Has("X-Dev") },
			Take:      func(h Handover) { taken <- h },
		}))
	})
	t.Cleanup(func() {
		stop()
		serving.Wait()
		_ = l.Close()
		select {
		case h := <-taken: // of a test that failed
			_ = errors.Join(h.Client.Close(), h.App.Close())
		default:
		}
	})
	return l.Addr().String(), taken
}

const (
	plain  = "GET /a HTTP/1.1\r\nHost: app\r\n\r\n"
	marked = "GET /b HTTP/1.1\r\nHost: app\r\nX-Dev: alice\r\n\r\n"
)

// web answers with the path and the body, in chunks when the path says so, and the second part only when more is said.
func web(t *testing.T, more <-chan struct{}) net.Listener {
	return app(t, func(c *net.TCPConn) {
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
				fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s%s", len(r.URL.Path)+len(body), r.URL.Path, body)
			}
		}
	})
}

func TestRequestsAreLookedAtOneByOne(t *testing.T) {
	for name, before := range map[string]string{
		"the first":     "",
		"after another": plain,
		"after a body":  "POST /a HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody",
	} {
		t.Run(name, func(t *testing.T) {
			address, taken := byRequest(t, web(t, nil))
			c := dial(t, address)
			in := bufio.NewReader(c)
			for range 3 {
				if before == "" {
					break
				}
				_, err := io.WriteString(c, before)
				require.NoError(t, err)
				answer, err := http.ReadResponse(in, nil)
				require.NoError(t, err)
				body, err := io.ReadAll(answer.Body)
				require.NoError(t, err)
				require.Contains(t, string(body), "/a")
				require.Empty(t, taken)
			}
			_, err := io.WriteString(c, marked)
			require.NoError(t, err)
			h := <-taken
			defer h.Client.Close()
			defer h.App.Close()
			require.Equal(t, marked, string(h.First))
			require.Equal(t, before != "", h.Used)
			require.Equal(t, marked, string(h.Head.Raw), "it was parsed already")
			require.Equal(t, "chosen", h.Choice)

			// The app's connection comes along, at the beginning of a request.
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

// Who does not wait for an answer before the next request gets the answers in order, wherever they come from.
func TestRequestWaitsForTheAnswersBeforeIt(t *testing.T) {
	more := make(chan struct{})
	address, taken := byRequest(t, web(t, more))
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
	require.Never(t, func() bool { return len(taken) > 0 }, 50*time.Millisecond, 10*time.Millisecond)
	more <- struct{}{}
	_, err = io.ReadAll(answer.Body)
	require.NoError(t, err)
	h := <-taken
	defer h.Client.Close()
	defer h.App.Close()
	require.Equal(t, marked, string(h.First))
}

// Behind an answer that ends with its connection the app gets what comes, as without us.
func TestRequestBehindAnAnswerWithoutAnEnd(t *testing.T) {
	more := make(chan struct{})
	address, taken := byRequest(t, web(t, more))
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
	require.Empty(t, taken)
}

// What cannot be said to be one whole plain request is looked at more closely elsewhere.
func TestRequestThatIsNotSimple(t *testing.T) {
	for name, sent := range map[string]string{
		"half a head":       plain[:20],
		"half a line":       "GET /a",
		"half a body":       "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 9\r\n\r\nhalf",
		"chunks":            "POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two at once":       plain + plain,
		"an upgrade":        "GET / HTTP/1.1\r\nHost: app\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
		"an expectation":    "PUT / HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 9\r\n\r\n",
		"two lengths":       "POST / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\nContent-Length: 1\r\n\r\n",
		"a tunnel":          "CONNECT db:5432 HTTP/1.1\r\nHost: db\r\n\r\n",
		"HTTP/2":            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"TLS":               "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
		"a line that is no": "SET key value\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			address, taken := byRequest(t, web(t, nil))
			c := dial(t, address)
			_, err := io.WriteString(c, sent)
			require.NoError(t, err)
			h := <-taken
			require.Equal(t, sent, string(h.First))
			require.False(t, h.Used)
			require.NoError(t, h.Client.Close())
			require.NoError(t, h.App.Close())
		})
	}
}

func TestWhatIsNotHTTPIsTheApps(t *testing.T) {
	address, taken := byRequest(t, app(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) }))
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
	require.Empty(t, taken)
}

// A laptop may want the requests of an app that does not listen.
func TestAppThatDoesNotListen(t *testing.T) {
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	address, taken := byRequest(t, gone)
	c := dial(t, address)
	h := <-taken
	require.Nil(t, h.App)
	_, err = io.WriteString(h.Client, "laptop")
	require.NoError(t, err)
	_, err = io.ReadFull(c, make([]byte, 6))
	require.NoError(t, err)
	require.NoError(t, h.Client.Close())
}

// A server of HTTP/2 may greet before its client has said anything. Who takes the connection greets too, so the client must not have heard it.
func TestServerThatGreetsFirst(t *testing.T) {
	const settings = "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x05\x00\x00\x40\x00"
	greets := app(t, func(c *net.TCPConn) {
		_, _ = io.WriteString(c, settings)
		_, _ = io.Copy(c, c)
	})
	t.Run("and is given away", func(t *testing.T) {
		address, taken := byRequest(t, greets)
		c := dial(t, address)
		time.Sleep(20 * time.Millisecond) // it has greeted
		_, err := io.WriteString(c, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
		require.NoError(t, err)
		h := <-taken
		require.Nil(t, h.App)
		_, err = io.WriteString(h.Client, "elsewhere")
		require.NoError(t, err)
		heard := make([]byte, len("elsewhere"))
		_, err = io.ReadFull(c, heard)
		require.NoError(t, err)
		require.Equal(t, "elsewhere", string(heard))
		require.NoError(t, h.Client.Close())
	})
	t.Run("and is the app's", func(t *testing.T) {
		address, _ := byRequest(t, greets)
		c := dial(t, address)
		_, err := io.WriteString(c, "\x01\x02")
		require.NoError(t, err)
		heard := make([]byte, len(settings)+2)
		_, err = io.ReadFull(c, heard)
		require.NoError(t, err)
		require.Equal(t, settings+"\x01\x02", string(heard))
	})
	t.Run("and is left", func(t *testing.T) {
		address, _ := byRequest(t, greets)
		c := dial(t, address)
		require.NoError(t, c.CloseWrite())
		heard, err := io.ReadAll(c)
		require.NoError(t, err)
		require.Equal(t, settings, string(heard))
	})
	t.Run("and another protocol's is heard at once", func(t *testing.T) {
		address, _ := byRequest(t, app(t, func(c *net.TCPConn) {
			_, _ = io.WriteString(c, "220 mail\r\n")
			_, _ = io.Copy(io.Discard, c)
		}))
		heard := make([]byte, len("220 mail\r\n"))
		_, err := io.ReadFull(dial(t, address), heard)
		require.NoError(t, err)
	})
}

func TestProtocolOfAServerThatSpeaksFirst(t *testing.T) {
	for first, want := range map[string]sniff.Protocol{"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": sniff.HTTP2, plain: sniff.Other} {
		var h httpState
		h.appSaid([]byte("greeting"))
		h.clientSaid([]byte(first))
		require.Equal(t, want, h.protocol, first)
	}
}
