package agent

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/netx"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

const ok = agentv1.RelayStatus_RELAY_STATUS_OK

// A connection that is opened while an intercept is in force goes to the laptop, which is told
// the client's address.
func TestLaptopGetsNewConnections(t *testing.T) {
	m := newLaptop(t, ok, answers("laptop"))
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	p.intercept(m.address)
	b := p.browse(t)
	assert.Equal(t, "laptop /cart ", b.get(t, "/cart"))

	header := <-m.headers
	assert.Equal(t, "uid-of-the-intercept", header.InterceptUid)
	assert.Equal(t, "secret", string(header.Token))
	assert.Equal(t, b.LocalAddr().String(), header.Source)
	assert.Equal(t, netip.MustParseAddrPort(p.address).Addr(), netip.MustParseAddrPort(header.Destination).Addr())

	p.leave()
	assert.Equal(t, "app /cart ", p.browse(t).get(t, "/cart"))
}

// Connections to a laptop are mux streams on one relay connection. A laptop with an older daemon
// gets a relay connection for each.
func TestConnectionsShareARelayConnection(t *testing.T) {
	for name, plain := range map[string]bool{"streams": false, "an older daemon": true} {
		t.Run(name, func(t *testing.T) {
			m := newLaptop(t, ok, answers("laptop"))
			m.plain = plain
			p := newPod(t, "127.0.0.1", app(t), m.authority)
			p.intercept(m.address)
			for range 3 {
				b := p.browse(t)
				assert.Equal(t, "laptop /cart ", b.get(t, "/cart"))
				assert.Equal(t, "laptop /more ", b.get(t, "/more"))
			}
			if plain {
				assert.EqualValues(t, 4, m.accepted.Load(), "one found out")
			} else {
				assert.EqualValues(t, 1, m.accepted.Load())
			}
		})
	}
}

// A lost relay connection resets the raw connections on it, and a new one replaces it.
func TestLostRelayConnectionResetsRawConnections(t *testing.T) {
	m := newLaptop(t, ok, func(c net.Conn) { _, _ = io.Copy(c, c) })
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	p.intercept(m.address)
	echoes := func(c net.Conn) bool {
		_, err := io.WriteString(c, "*1\r\n")
		require.NoError(t, err)
		answer := make([]byte, 4)
		_, err = io.ReadFull(c, answer)
		return err == nil && string(answer) == "*1\r\n"
	}
	for range 3 {
		c := p.dial(t)
		require.True(t, echoes(c))
		m.cut()
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Eventually(t, func() bool { return echoes(p.dial(t)) }, patience, time.Millisecond)
	}
}

// An idle HTTP/1 connection survives the loss of the relay connection: its next request has an
// answer, and those after it are the laptop's again.
func TestLostRelayConnectionKeepsIdleClients(t *testing.T) {
	m := newLaptop(t, ok, answers("laptop"))
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	p.intercept(m.address)
	b := p.browse(t)
	assert.Equal(t, "laptop /1 ", b.get(t, "/1"))
	for range 3 {
		m.cut()
		assert.Contains(t, []string{"laptop /2 ", "app /2 "}, b.get(t, "/2"))
		require.Eventually(t, func() bool { return b.get(t, "/3") == "laptop /3 " }, patience, time.Millisecond)
	}
}

// A connection that stays open while intercepts begin and end moves with them, between two
// requests: connection pools keep connections for hours.
func TestKeepAliveMovesBetweenRequests(t *testing.T) {
	m := newLaptop(t, ok, answers("laptop"))
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	b := p.browse(t)
	for range 3 {
		assert.Equal(t, "app /1 ", b.get(t, "/1"))
		p.intercept(m.address)
		assert.Equal(t, "laptop /2 ", b.get(t, "/2"))
		assert.Equal(t, "laptop /3 ", b.get(t, "/3"))
		p.leave()
		assert.Equal(t, "app /4 ", b.get(t, "/4"))
	}
	assert.Len(t, m.headers, 3, "one relayed connection for each time, not for each request")
}

// The upstream that got the head of a request gets its body too, even if the body looks like
// another request.
func TestRequestInProgressStays(t *testing.T) {
	const next = "GET /not-a-request HTTP/1.1\r\n\r\n"
	head := make(chan struct{})
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
		in := bufio.NewReader(c)
		for range 2 {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			if r.ContentLength > 0 {
				close(head)
			}
			body, _ := io.ReadAll(r.Body)
			_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		}
		_, _ = io.Copy(io.Discard, in)
	})
	m := newLaptop(t, ok, answers("laptop"))
	p := newPod(t, "127.0.0.1", port, m.authority)
	b := p.browse(t)
	assert.Empty(t, b.get(t, "/1"))

	_, err := fmt.Fprintf(b, "POST /2 HTTP/1.1\r\nHost: catalog\r\nContent-Length: %d\r\n\r\n", len(next))
	require.NoError(t, err)
	<-head
	p.intercept(m.address)
	_, err = io.WriteString(b, next)
	require.NoError(t, err)
	assert.Equal(t, next, b.answer(t))
	assert.Equal(t, "laptop /3 ", b.get(t, "/3"), "the one after it moves")
}

// A client that expects 100 Continue has an answer before its request is complete. The body
// follows to the same upstream.
func TestBodyFollowsItsExpectation(t *testing.T) {
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
		r, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		_, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n")
		body, _ := io.ReadAll(r.Body)
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	m := newLaptop(t, ok, answers("laptop"))
	p := newPod(t, "127.0.0.1", port, m.authority)
	b := p.browse(t)
	_, err := io.WriteString(b,
		"PUT /order HTTP/1.1\r\nHost: catalog\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n")
	require.NoError(t, err)
	leave, err := http.ReadResponse(b.in, nil)
	require.NoError(t, err)
	_ = leave.Body.Close()
	require.Equal(t, http.StatusContinue, leave.StatusCode)

	p.intercept(m.address)
	_, err = io.WriteString(b, `{"id": 42}`)
	require.NoError(t, err)
	assert.Equal(t, `{"id": 42}`, b.answer(t))
	assert.Empty(t, m.headers)
}

// The agent cannot see the boundaries of messages that are not HTTP/1: such a connection ends
// where it began.
func TestOtherProtocolsStay(t *testing.T) {
	for name, c := range map[string]struct{ opening, answer string }{
		"a web socket": {
			opening: "GET /socket HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
			answer:  "HTTP/1.1 101 Switching Protocols\r\n\r\n",
		},
		"some binary":      {"\x00\x01\x02", "\x03\x04\x05"},
		"TLS of the app's": {"\x16\x03\x01\x02\x00", "\x16\x03\x03\x00\x7a"},
	} {
		t.Run(name, func(t *testing.T) {
			port := serve(t, "127.0.0.1", func(tcp *net.TCPConn) {
				_, _ = io.ReadFull(tcp, make([]byte, len(c.opening)))
				_, _ = io.WriteString(tcp, c.answer)
				_, _ = io.Copy(tcp, tcp)
			})
			m := newLaptop(t, ok, answers("laptop"))
			p := newPod(t, "127.0.0.1", port, m.authority)
			client := p.dial(t)
			_, err := io.WriteString(client, c.opening)
			require.NoError(t, err)
			_, err = io.ReadFull(client, make([]byte, len(c.answer)))
			require.NoError(t, err)

			p.intercept(m.address)
			const request = "GET / HTTP/1.1\r\n\r\n"
			_, err = io.WriteString(client, request)
			require.NoError(t, err)
			echo := make([]byte, len(request))
			_, err = io.ReadFull(client, echo)
			require.NoError(t, err)
			assert.Equal(t, request, string(echo))
			assert.Empty(t, m.headers)
		})
	}
}

// The app answers whenever the laptop cannot: a colleague's request must not fail because a lid
// was closed.
func TestAppAnswersForAnUnreachableLaptop(t *testing.T) {
	for name, address := range map[string]func(*testing.T) (string, *fakeLaptop){
		"the manager is gone": func(t *testing.T) (string, *fakeLaptop) {
			return fmt.Sprintf("127.0.0.1:%d", nobody(t)), newLaptop(t, ok, answers("laptop"))
		},
		"the manager hangs up": func(t *testing.T) (string, *fakeLaptop) {
			port := serve(t, "127.0.0.1", func(*net.TCPConn) {})
			return fmt.Sprintf("127.0.0.1:%d", port), newLaptop(t, ok, answers("laptop"))
		},
		"the manager is silent": func(t *testing.T) (string, *fakeLaptop) {
			silent := serve(t, "127.0.0.1", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) })
			return fmt.Sprintf("127.0.0.1:%d", silent), newLaptop(t, ok, answers("laptop"))
		},
		"another manager": func(t *testing.T) (string, *fakeLaptop) {
			return newLaptop(t, ok, answers("impostor")).address, newLaptop(t, ok, answers("laptop"))
		},
		"hangs up before the status": func(t *testing.T) (string, *fakeLaptop) {
			certificate, authority := newCertificate(t)
			port := serve(t, "127.0.0.1", func(raw *net.TCPConn) {
				c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate}})
				_, _ = c.Read(make([]byte, 1))
				_ = c.Close()
			})
			return fmt.Sprintf("127.0.0.1:%d", port), &fakeLaptop{authority: authority}
		},
		"nothing listens":   refusing(agentv1.RelayStatus_RELAY_STATUS_REFUSED),
		"laptop asleep":     refusing(agentv1.RelayStatus_RELAY_STATUS_UNREACHABLE),
		"intercept ended":   refusing(agentv1.RelayStatus_RELAY_STATUS_UNKNOWN_INTERCEPT),
		"token denied":      refusing(agentv1.RelayStatus_RELAY_STATUS_DENIED),
		"status of nothing": refusing(agentv1.RelayStatus_RELAY_STATUS_UNSPECIFIED),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			to, m := address(t)
			p := newPod(t, "127.0.0.1", app(t), m.authority)
			p.intercept(to)
			assert.Equal(t, "app /new ", p.browse(t).get(t, "/new"), "of a new connection")

			p.leave()
			b := p.browse(t)
			assert.Equal(t, "app /before ", b.get(t, "/before"))
			p.intercept(to)
			assert.Equal(t, "app /moved ", b.get(t, "/moved"), "of a connection that was to move")
			assert.Equal(t, "app /after ", b.get(t, "/after"))
		})
	}
}

func refusing(status agentv1.RelayStatus) func(*testing.T) (string, *fakeLaptop) {
	return func(t *testing.T) (string, *fakeLaptop) {
		m := newLaptop(t, status, nil)
		return m.address, m
	}
}

// A laptop that does not answer delays one request and not all: it is skipped until it can be
// reached, and no request waits for that. A laptop that answers, even with a refusal, is asked
// each time, because a developer restarts the process every minute.
func TestSilentLaptopIsSkippedUntilItAnswers(t *testing.T) {
	m := newLaptop(t, agentv1.RelayStatus_RELAY_STATUS_UNREACHABLE, answers("laptop"))
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	for range 4 {
		p.intercept(m.address) // the manager says the same again: what is known of the laptop is kept
		assert.Equal(t, "app / ", p.browse(t).get(t, "/"))
		assert.Nil(t, p.table.Global(p.port))
	}
	<-m.headers // of the request
	<-m.headers // of the first look
	assert.Nil(t, p.table.Global(p.port))
	m.status.Store(int32(ok))
	assert.Eventually(t, func() bool { return p.table.Global(p.port) != nil }, patience, 10*time.Millisecond)
	assert.Equal(t, "laptop / ", p.browse(t).get(t, "/"))
}

func TestRefusingLaptopIsAskedEachTime(t *testing.T) {
	m := newLaptop(t, agentv1.RelayStatus_RELAY_STATUS_REFUSED, nil)
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	p.intercept(m.address)
	for n := range 4 {
		assert.Equal(t, "app / ", p.browse(t).get(t, "/"))
		assert.Len(t, m.headers, n+1)
	}
}

// A laptop that closes its connections when the intercept ends does so between two requests: the
// app gets the next one, on the same client connection.
func TestLaptopMayCloseAfterTheIntercept(t *testing.T) {
	hangUp := make(chan struct{})
	m := newLaptop(t, ok, func(c net.Conn) {
		go func() { <-hangUp; _ = c.Close() }()
		answers("laptop")(c)
	})
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	p.intercept(m.address)
	b := p.browse(t)
	assert.Equal(t, "laptop /1 ", b.get(t, "/1"))
	p.leave()
	close(hangUp)
	time.Sleep(50 * time.Millisecond) // the agent has seen it
	assert.Equal(t, "app /2 ", b.get(t, "/2"))
}

// A laptop that is lost in the middle of a request ends the client's connection with an error.
// The request cannot be replayed, because the laptop may have executed it.
func TestLaptopLostBeforeItsAnswer(t *testing.T) {
	m := newLaptop(t, ok, func(c net.Conn) {
		_, _ = c.Read(make([]byte, 1))
		raw := netx.Below(c).(*net.TCPConn)
		_ = raw.SetLinger(0)
		_ = raw.Close()
	})
	p := newPod(t, "127.0.0.1", app(t), m.authority)
	p.intercept(m.address)
	c := p.dial(t)
	_, err := io.WriteString(c, "POST /order HTTP/1.1\r\n\r\n")
	require.NoError(t, err)
	_, err = io.ReadAll(c)
	require.ErrorContains(t, err, "reset")
}

// If the manager stays away, the agent does not keep its last configuration for ever: nobody
// would tell it when the laptop has gone.
func TestConfigurationEndsWithoutAManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pod{agent: newAgent(nil, nil), port: 8080}
		p.intercept("10.0.0.1:8083")

		p.manager.lost()
		time.Sleep(forgetAfter - time.Millisecond)
		p.manager.lost() // a second failure does not put the end off
		assert.NotNil(t, p.table.Global(8080))
		time.Sleep(2 * time.Millisecond)
		assert.Nil(t, p.table.Global(8080))

		config := &agentv1.Config{
			Intercepts: []*agentv1.Intercept{{Uid: "uid", Port: uint32(p.port), RelayAddress: "10.0.0.1:8083"}},
		}
		p.manager.apply(config)
		p.manager.lost()
		time.Sleep(forgetAfter - time.Millisecond)
		p.manager.apply(config)
		time.Sleep(time.Hour)
		assert.NotNil(t, p.table.Global(8080), "a manager that came back in time changes nothing")
	})
}

// A process that a debugger has paused reads nothing, for as long as its developer thinks. No
// data may be lost.
func TestPausedProcessLosesNothing(t *testing.T) {
	t.Parallel()
	const size, thinking = 32 << 20, 10 * time.Second
	got := make(chan int64, 1)
	m := newLaptop(t, ok, func(c net.Conn) {
		_ = c.SetDeadline(time.Now().Add(6 * thinking))
		time.Sleep(thinking)
		n, err := io.Copy(io.Discard, c)
		assert.NoError(t, err)
		got <- n
	})
	p := newPod(t, "127.0.0.1", nobody(t), m.authority)
	p.intercept(m.address)
	c := p.dial(t)
	require.NoError(t, c.SetDeadline(time.Now().Add(6*thinking)))
	_, err := c.Write(make([]byte, size))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	require.EqualValues(t, size, <-got)
}
