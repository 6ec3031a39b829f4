package agent

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/traffic/agentconfig"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// tlsApp is a service of both versions of HTTP behind TLS.
func tlsApp(t *testing.T, config *tls.Config) uint16 {
	t.Helper()
	config.NextProtos = []string{"h2", "http/1.1"}
	serveApp := handler(t, says("app"))
	return serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(tls.Server(c, config)) })
}

// Without its certificate nobody looks into TLS: every byte goes to the app, whoever intercepts, and the manager is told.
func TestTLSPassesUntouched(t *testing.T) {
	certificate, roots := newCertificate(t)
	alice := newLaptop(t, ok, handler(t, says("alice")))
	p := newPod(t, "127.0.0.1", tlsApp(t, &tls.Config{Certificates: []tls.Certificate{certificate}}), alice.authority)
	p.ports = newPorts(agentconfig.Config{Ports: []agentconfig.Port{{App: p.port}}})
	p.setRoutes([]*agentv1.Intercept{p.person("alice", alice.address)})
	for _, versions := range []func(*http.Protocols){func(v *http.Protocols) { v.SetHTTP1(true) }, func(v *http.Protocols) { v.SetHTTP2(true) }} {
		protocols := new(http.Protocols)
		versions(protocols)
		transport := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: serverName}}
		t.Cleanup(transport.CloseIdleConnections)
		for range 2 {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+p.address+"/", strings.NewReader("body"))
			require.NoError(t, err)
			r.Header.Set("X-Dev", "alice")
			answer, err := transport.RoundTrip(r)
			require.NoError(t, err)
			assert.Equal(t, "app / body", text(t, answer))
			_ = answer.Body.Close()
		}
	}
	assert.Empty(t, alice.headers)
	require.Eventually(t, func() bool { return len(p.ports.states()) == 1 }, patience, patience/1000, "a client's TLS makes the agent look")
	assert.Len(t, p.found, 1)
}

// The app is asked once when a port is to be served by request; what answers in anything but TLS does not speak it.
func TestLook(t *testing.T) {
	certificate, _ := newCertificate(t)
	secured, plain, absent, unasked := tlsApp(t, &tls.Config{Certificates: []tls.Certificate{certificate}}), app(t), nobody(t), tlsApp(t, &tls.Config{Certificates: []tls.Certificate{certificate}})
	p := newPod(t, "127.0.0.1", plain, nil)
	var config agentconfig.Config
	var intercepts []*agentv1.Intercept
	for _, number := range []uint16{secured, plain, absent} {
		config.Ports = append(config.Ports, agentconfig.Port{App: number})
		i := p.person("alice", "127.0.0.1:1")
		i.Port, i.Uid = uint32(number), i.Uid+string(rune('a'+len(intercepts)))
		intercepts = append(intercepts, i)
	}
	config.Ports = append(config.Ports, agentconfig.Port{App: unasked})
	p.ports = newPorts(config)
	p.setRoutes(append(intercepts, &agentv1.Intercept{Uid: "global", Port: uint32(unasked)}))
	p.look(t.Context())
	states := p.ports.states()
	require.Len(t, states, 1)
	assert.Equal(t, uint32(secured), states[0].Port)
	assert.True(t, states[0].Tls)
	assert.True(t, p.ports[plain].known)
	assert.False(t, p.ports[absent].known, "it is asked again")
	assert.False(t, p.ports[unasked].known, "a global intercept needs not know")
}

// A client that is slow to say hello in TLS, as one that opened its connection ahead, reaches the app as well.
func TestTLSLate(t *testing.T) {
	certificate, roots := newCertificate(t)
	alice := newLaptop(t, ok, handler(t, says("alice")))
	p := newPod(t, "127.0.0.1", tlsApp(t, &tls.Config{Certificates: []tls.Certificate{certificate}}), alice.authority)
	p.setRoutes([]*agentv1.Intercept{p.person("alice", alice.address)})
	raw := p.dial(t)
	time.Sleep(silence * 2)
	c := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: serverName})
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: catalog\r\nX-Dev: alice\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Contains(t, string(answer), "app / ")
}
