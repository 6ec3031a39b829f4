package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// held returns a service that answers requests for /held when the test calls answer.
func held(name string) (h http.Handler, arrived <-chan struct{}, answer func()) {
	arrivals, release := make(chan struct{}, 100), make(chan struct{})
	var once sync.Once
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/held" {
			arrivals <- struct{}{}
			<-release
		}
		fmt.Fprint(w, name)
	}), arrivals, func() { once.Do(func() { close(release) }) }
}

// ending returns a pod in front of an app, with a personal intercept by alice. Her laptop
// answers requests for /held when the test calls answer.
func ending(t *testing.T) (p *pod, arrived <-chan struct{}, answer func()) {
	t.Helper()
	serveApp := handler(t, says("app"))
	h, arrived, answer := held("alice")
	alice := newLaptop(t, ok, handler(t, h))
	t.Cleanup(answer)
	p = newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), alice.authority)
	p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
	return p, arrived, answer
}

// A pod that ends asks its clients, with the next answer, to open another connection.
func TestEndingPodClosesAfterTheAnswer(t *testing.T) {
	p, _, _ := ending(t)
	for _, who := range []string{"alice", "nobody"} {
		b := p.browse(t)
		p.life.podEnding.Store(false)
		ask := func(who string) (closes bool) {
			_, err := fmt.Fprintf(b, "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: %s\r\n\r\n", who)
			require.NoError(t, err)
			answer, err := http.ReadResponse(b.in, nil)
			require.NoError(t, err)
			assert.NotEmpty(t, text(t, answer))
			return answer.Close
		}
		assert.False(t, ask(who))
		p.podEnds()
		assert.True(t, ask(who))
		_, err := b.in.ReadByte()
		assert.ErrorIs(t, err, io.EOF, "and closes, in order")
	}
}

// If the app ends before the agent, the next request on a kept connection finds it closed, and
// not reset.
func TestConnectionEndsInOrderAfterTheApp(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = l.Close()
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err == nil {
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(r.URL.Path), r.URL.Path)
		}
		_ = c.Close()
	}()
	m := newLaptop(t, ok, answers("laptop"))
	p := newPod(t, "127.0.0.1", uint16(l.Addr().(*net.TCPAddr).Port), m.authority)
	p.table.Set([]*agentv1.Intercept{p.person("alice", m.address)})
	b := p.browse(t)
	require.Equal(t, "/last", b.get(t, "/last"))
	_, err = io.WriteString(b, "GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	require.NoError(t, err)
	_, err = b.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
}

// An agent that has to end closes idle connections in order, and finishes the requests in
// progress.
func TestStoppingFinishesRequests(t *testing.T) {
	p, arrived, answer := ending(t)
	idle, busy, global := p.browse(t), p.browse(t), p.browse(t)
	_, err := io.WriteString(idle, "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n")
	require.NoError(t, err)
	assert.Equal(t, "alice", idle.answer(t))
	_, err = io.WriteString(busy, "GET /held HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n")
	require.NoError(t, err)
	<-arrived
	waiting := p.dial(t) // perhaps not yet accepted
	_, err = io.WriteString(waiting, "GET /waiting HTTP/1.1\r\nHost: a\r\nX-Dev: bob\r\n\r\n")
	require.NoError(t, err)
	_, err = io.WriteString(global, "\x00\x01\x02") // not HTTP, and the app says nothing
	require.NoError(t, err)

	p.agent.life.stop()
	_, err = idle.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	r, err := http.ReadResponse(bufio.NewReader(waiting), nil)
	require.NoError(t, err)
	assert.Equal(t, "app /waiting ", text(t, r))
	answer()
	r, err = http.ReadResponse(busy.in, nil)
	require.NoError(t, err)
	assert.True(t, r.Close)
	assert.Equal(t, "alice", text(t, r))
	_, err = busy.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", p.address)
		if err == nil {
			_ = c.Close()
		}
		return err != nil
	}, patience, 10*time.Millisecond, "nothing new is taken")
}

// The same holds for the connections of a global intercept.
func TestStoppingClosesIdleConnectionsOfAGlobalIntercept(t *testing.T) {
	t.Parallel()
	h, arrived, answer := held("laptop")
	t.Cleanup(answer)
	m := newLaptop(t, ok, handler(t, h))
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	p.intercept(m.address)
	idle, busy := p.browse(t), p.browse(t)
	assert.Equal(t, "laptop", idle.get(t, "/"))
	_, err := io.WriteString(busy, "GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
	require.NoError(t, err)
	<-arrived
	p.agent.life.stop()
	_, err = idle.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	answer()
	assert.Equal(t, "laptop", busy.answer(t))
	_, err = busy.in.ReadByte()
	require.ErrorIs(t, err, io.EOF)
}

// The agent asks HTTP/2 clients with GOAWAY to open another connection. It finishes their streams.
func TestEndingPodSendsGoaway(t *testing.T) {
	for _, global := range []bool{false, true} {
		t.Run(fmt.Sprintf("global %t", global), func(t *testing.T) {
			p, arrived, answer := ending(t)
			if global {
				alice := p.table.Port(p.port).Personal[0]
				p.intercept(alice.RelayAddress)
			}
			transport := transports(t)["HTTP/2"]
			ask := func(path string) (conn net.Conn, body string) {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.address+path, nil)
				require.NoError(t, err)
				r.Header.Set("X-Dev", "alice")
				r = r.WithContext(httptrace.WithClientTrace(r.Context(),
					&httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { conn = i.Conn }}))
				answer, err := transport.RoundTrip(r)
				require.NoError(t, err)
				defer answer.Body.Close()
				return conn, text(t, answer)
			}
			first, _ := ask("/")
			var slow sync.WaitGroup
			slow.Go(func() {
				_, body := ask("/held")
				assert.Equal(t, "alice", body)
			})
			<-arrived
			p.podEnds()
			require.Eventually(t,
				func() bool { c, body := ask("/"); return body == "alice" && c != first }, patience, 1)
			p.agent.life.stop()
			answer()
			slow.Wait()
		})
	}
}

// An agent ends although a laptop never answers.
func TestAgentEndsAlthoughALaptopDoesNotAnswer(t *testing.T) {
	for _, transport := range transports(t) {
		p, arrived, _ := ending(t)
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.address+"/held", nil)
		require.NoError(t, err)
		r.Header.Set("X-Dev", "alice")
		var client sync.WaitGroup
		client.Go(func() {
			answer, err := transport.RoundTrip(r)
			if err == nil {
				_, err = io.ReadAll(answer.Body)
				_ = answer.Body.Close()
			}
			assert.Error(t, err, "what was cut does not look whole")
		})
		<-arrived
		p.stop()
		client.Wait()
	}
}

// Only the pod itself may report its end.
func TestOnlyThePodReportsItsEnd(t *testing.T) {
	for from, want := range map[string]bool{
		"127.0.0.1:4711": true, "[::1]:4711": true, "10.1.2.3:4711": false, "nonsense": false,
	} {
		a := newAgent(nil, nil)
		r := httptest.NewRequest(http.MethodPost, podEndsPath, nil)
		r.RemoteAddr = from
		a.servePodEnds(httptest.NewRecorder(), r)
		assert.Equal(t, want, a.life.podEnding.Load(), from)
	}
}
