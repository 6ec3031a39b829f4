package agent

import (
	"context"
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
	"golang.org/x/net/http2"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// greets returns an HTTP/2 server that sends its SETTINGS before its client has sent anything,
// as a gRPC server does, and acknowledges pings with data of its own.
func greets(name byte) func(net.Conn) {
	return func(c net.Conn) {
		f := http2.NewFramer(c, c)
		if f.WriteSettings() != nil {
			return
		}
		if _, err := io.ReadFull(c, make([]byte, len(http2.ClientPreface))); err != nil {
			return
		}
		for {
			frame, err := f.ReadFrame()
			if err != nil {
				return
			}
			if _, ok := frame.(*http2.PingFrame); ok && f.WritePing(true, [8]byte{name}) != nil {
				return
			}
		}
	}
}

// The HTTP/2 requests on a port with a global intercept are told apart too, whoever speaks
// first, on the connection that was opened to find out.
func TestLaptopThatSpeaksFirstIsRoutedByRequest(t *testing.T) {
	var server http2.Server //nolint:staticcheck // the server of net/http does not speak before its client
	m := newLaptop(t, ok, func(c net.Conn) {
		server.ServeConn(c, &http2.ServeConnOpts{Handler: says("laptop")}) //nolint:staticcheck // likewise
	})
	serveApp := handler(t, says("app"))
	p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), m.authority)
	p.intercept(m.address)
	transport := transports(t)["HTTP/2"]
	for range 3 {
		require.Equal(t, "laptop / order",
			text(t, p.ask(t, transport, http.MethodPost, "/", "", strings.NewReader("order"))))
	}
	require.Len(t, m.headers, 1)
	m.status.Store(int32(agentv1.RelayStatus_RELAY_STATUS_REFUSED))
	m.cut()
	require.Equal(t, "app / ", text(t, p.ask(t, transport, http.MethodGet, "/", "", nil)))
}

// Clients that keep their connection move to the laptop and back without losing a request.
func TestGlobalHTTP2Moves(t *testing.T) {
	var server http2.Server //nolint:staticcheck // as above
	m := newLaptop(t, ok, func(c net.Conn) {
		server.ServeConn(c, &http2.ServeConnOpts{Handler: says("laptop")}) //nolint:staticcheck // likewise
	})
	serveApp := handler(t, says("app"))
	p := newPod(t, "127.0.0.1",
		serve(t, "127.0.0.1", func(c *net.TCPConn) { _ = c.SetDeadline(time.Time{}); serveApp(c) }), m.authority)
	transport := transports(t)["HTTP/2"]
	ask := func() (string, error) {
		r, err := http.NewRequest(http.MethodPost, "http://"+p.address+"/", strings.NewReader("order"))
		if err != nil {
			return "", err
		}
		answer, err := transport.RoundTrip(r)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		page, err := io.ReadAll(answer.Body)
		who, rest, _ := strings.Cut(string(page), " ")
		if err == nil && rest != "/ order" {
			err = fmt.Errorf("%s: %q", answer.Status, page)
		}
		return who, err
	}
	ctx, stop := context.WithCancel(t.Context())
	var asking sync.WaitGroup
	for range 4 {
		asking.Go(func() {
			for ctx.Err() == nil {
				_, err := ask()
				assert.NoError(t, err)
			}
		})
	}
	for range 10 {
		for _, who := range []string{"laptop", "app"} {
			if who == "laptop" {
				p.intercept(m.address)
				for len(m.headers) > 0 {
					<-m.headers
				}
			} else {
				p.leave()
			}
			require.Eventually(t, func() bool { got, err := ask(); return err == nil && got == who }, patience,
				time.Millisecond)
		}
	}
	stop()
	asking.Wait()
}

// An HTTP/2 server may speak before its client. The client is asked to open another connection
// all the same when its requests have to move.
func TestHTTP2ServerSpeaksFirst(t *testing.T) {
	m := newLaptop(t, ok, greets('l'))
	for _, change := range []struct {
		name          string
		before, after func(*pod)
		answers       byte
	}{
		{
			name:   "from the app to the laptop",
			before: (*pod).leave, after: func(p *pod) { p.intercept(m.address) }, answers: 'a',
		},
		{
			name:   "from the laptop to the app",
			before: func(p *pod) { p.intercept(m.address) }, after: (*pod).leave, answers: 'l',
		},
		{
			name:    "from the laptop to a person",
			before:  func(p *pod) { p.intercept(m.address) },
			after:   func(p *pod) { p.table.Set([]*agentv1.Intercept{p.person("alice", m.address)}) },
			answers: 'l',
		},
	} {
		for _, late := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, late %t", change.name, late), func(t *testing.T) {
				p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { greets('a')(c) }), m.authority)
				change.before(p)
				c := p.dial(t)
				f := http2.NewFramer(c, c)
				frame, err := f.ReadFrame()
				require.NoError(t, err)
				require.Equal(t, http2.FrameSettings, frame.Header().Type)
				if late { // the change comes between the greeting and the client's
					change.after(p)
				}
				_, err = c.Write([]byte(http2.ClientPreface))
				require.NoError(t, err)
				require.NoError(t, f.WriteSettings())
				if !late {
					require.NoError(t, f.WritePing(false, [8]byte{}))
					frame, err := f.ReadFrame()
					require.NoError(t, err)
					require.Equal(t, change.answers, frame.(*http2.PingFrame).Data[0])
					change.after(p)
				}
				frame, err = f.ReadFrame()
				require.NoError(t, err)
				require.Equal(t, http2.FrameGoAway, frame.Header().Type)
			})
		}
	}
}
