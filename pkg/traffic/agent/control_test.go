package agent

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// Without a manager the app answers, except where the user has forbidden it.
func TestAppAnswersWithoutAManager(t *testing.T) {
	serveApp := handler(t, says("app"))
	m := newLaptop(t, ok, handler(t, says("laptop")))
	p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), m.authority)
	alice, bob, carol := p.person("alice", m.address), p.person("bob", m.address), p.person("carol", m.address)
	alice.ErrorOnFailure = true
	carol.ErrorOnFailure, carol.Wiretap = true, true
	p.table.Set([]*agentv1.Intercept{alice, bob, carol}, uint32(p.port))
	for _, transport := range transports(t) {
		for _, who := range []string{"alice", "bob"} {
			require.Equal(t, "laptop / ", text(t, p.ask(t, transport, http.MethodGet, "/", who, nil)))
		}
	}
	m.status.Store(int32(agentv1.RelayStatus_RELAY_STATUS_REFUSED))
	m.cut()
	p.manager.mu.Lock()
	p.manager.forgetLocked()
	p.manager.mu.Unlock()
	require.Len(t, p.table.Port(p.port).Targets(), 1)
	for version, transport := range transports(t) {
		for who, want := range map[string]int{
			"alice": http.StatusServiceUnavailable, "bob": http.StatusOK, "carol": http.StatusOK,
		} {
			assert.Equal(t, want, p.ask(t, transport, http.MethodGet, "/", who, nil).StatusCode, "%s, %s", version, who)
		}
	}
}

// An intercept whose requests the app must not answer does not last for ever if no manager comes
// back to end it.
func TestStrictInterceptsEndWithoutAManager(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &pod{agent: newAgent(nil, nil), port: 8080}
		p.table.Set([]*agentv1.Intercept{{Uid: "one", Port: 8080, ErrorOnFailure: true}})
		p.manager.lost()
		time.Sleep(forgetAllAfter - time.Second)
		require.NotNil(t, p.table.Port(8080))
		p.manager.lost()
		time.Sleep(2 * time.Second)
		require.Nil(t, p.table.Port(8080))
	})
}

// Another manager gives the agent other tokens for the same intercepts. Requests in progress go
// on, and new ones use the new tokens.
func TestNewTokensKeepIntercepts(t *testing.T) {
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			goesOn := make(chan struct{})
			m := newLaptop(t, ok, handler(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				_, _ = fmt.Fprintln(w, "before")
				_ = http.NewResponseController(w).Flush()
				<-goesOn
				_, _ = fmt.Fprintln(w, "after")
			})))
			next := newLaptop(t, ok, handler(t, says("laptop")))
			p := newPod(t, "127.0.0.1", app(t), m.authority)
			p.tls.RootCAs.AddCert(next.certificate)
			p.intercept(m.address)
			target := p.table.Global(p.port)
			lines := bufio.NewScanner(p.ask(t, transport, http.MethodGet, "/", "", nil).Body)
			require.True(t, lines.Scan())

			p.table.Set([]*agentv1.Intercept{{
				Uid: "uid-of-the-intercept", Port: uint32(p.port), RelayAddress: next.address, Token: []byte("another"),
			}})
			require.Same(t, target, p.table.Global(p.port))
			require.NoError(t, target.Ctx.Err())
			require.Equal(t, "laptop / ", text(t, p.ask(t, transports(t)[version], http.MethodGet, "/", "", nil)))
			require.Equal(t, "another", string((<-next.headers).Token))
			close(goesOn)
			require.True(t, lines.Scan())
			require.Equal(t, "after", lines.Text())
		})
	}
}
