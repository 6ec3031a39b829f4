package agent

import (
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// Without a manager the apps answer, but where somebody said that they must not.
func TestForgetting(t *testing.T) {
	serveApp := handler(t, says("app"))
	m := newLaptop(t, ok, handler(t, says("laptop")))
	p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), m.authority)
	alice, bob, carol := p.person("alice", m.address), p.person("bob", m.address), p.person("carol", m.address)
	alice.ErrorOnFailure = true
	carol.ErrorOnFailure, carol.Wiretap = true, true
	p.setRoutes([]*agentv1.Intercept{alice, bob, carol}, uint32(p.port))
	for _, transport := range transports(t) {
		for _, who := range []string{"alice", "bob"} {
			require.Equal(t, "laptop / ", text(t, p.ask(t, transport, http.MethodGet, "/", who, nil)))
		}
	}
	m.status.Store(int32(agentv1.RelayStatus_RELAY_STATUS_REFUSED))
	m.cut()
	p.forget()
	require.Len(t, p.table(p.port).all(), 1)
	for version, transport := range transports(t) {
		for who, want := range map[string]int{"alice": http.StatusServiceUnavailable, "bob": http.StatusOK, "carol": http.StatusOK} {
			assert.Equal(t, want, p.ask(t, transport, http.MethodGet, "/", who, nil).StatusCode, "%s, %s", version, who)
		}
	}
}
