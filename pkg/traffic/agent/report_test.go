package agent

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/traffic/agent/report"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// routed waits until a request is reported, and returns it in words.
func (p *pod) routed(t *testing.T) string {
	t.Helper()
	r := p.reported(t, patience)
	require.NotNil(t, r)
	assert.Equal(t, uint32(p.port), r.Port)
	assert.NotZero(t, r.AtUnixMicro)
	words := fmt.Sprintf("%s %s %d %s %s", r.Method, r.Path, r.Status, strings.TrimPrefix(r.Way.String(), "WAY_"),
		r.InterceptUid)
	if r.GrpcStatus != nil {
		words += fmt.Sprintf(" grpc %d", *r.GrpcStatus)
	}
	if len(r.Copied) > 0 {
		words += fmt.Sprint(" copied ", r.Copied)
	}
	return words
}

// reported waits until a request is reported, for some time at most.
func (p *pod) reported(t *testing.T, most time.Duration) *agentv1.Routed {
	for end := time.Now().Add(most); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if m, _ := p.report.Take(time.Now()); m != nil && len(m.Routed) > 0 {
			require.Len(t, m.Routed, 1)
			return m.Routed[0]
		}
	}
	return nil
}

// Who tails a port learns of each request, where it went and whose it was, and nothing that is
// in it.
func TestTailedRequests(t *testing.T) {
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			serveApp := handler(t, says("app"))
			alice := newLaptop(t, ok, handler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/grpc" {
					w.Header().Set("Content-Type", "application/grpc")
					w.Header().Set("Trailer", "Grpc-Status")
					w.WriteHeader(http.StatusOK)
					w.Header().Set("Grpc-Status", "5")
					return
				}
				w.WriteHeader(http.StatusTeapot)
			})))
			p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), alice.authority)
			gone := p.person("bob", fmt.Sprintf("127.0.0.1:%d", nobody(t)))
			strict := p.person("eve", fmt.Sprintf("127.0.0.1:%d", nobody(t)))
			tap := p.person("carol", alice.address)
			strict.ErrorOnFailure, tap.Wiretap = true, true
			ask := func(method, path, who string) { _ = text(t, p.ask(t, transport, method, path, who, nil)) }

			ask(http.MethodGet, "/before", "") // on a connection that is open already when somebody begins to tail
			p.table.Set(nil, uint32(p.port))
			for { // until the client has received GOAWAY
				ask(http.MethodGet, "/moves", "")
				if p.reported(t, time.Second) != nil {
					break
				}
			}
			ask(http.MethodGet, "/nobody?token=secret", "")
			assert.Equal(t, "GET /nobody 200 APP ", p.routed(t))

			p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address), gone, strict, tap}, uint32(p.port))
			for _, c := range []struct{ method, path, who, want string }{
				{"PUT", "/a%2Fb?x=y", "alice", "PUT /a%2Fb 418 LAPTOP of-alice"},
				{
					method: "GET", path: "/" + strings.Repeat("x", 2*report.MaxPath),
					want: "GET /" + strings.Repeat("x", report.MaxPath-1) + " 200 APP ",
				},
				{"GET", "/trailers", "dave", "GET /trailers 200 APP "},
				{"HEAD", "/", "bob", "HEAD / 200 APP of-bob"},
				{"GET", "/", "carol", "GET / 200 APP  copied [of-carol]"},
			} {
				ask(c.method, c.path, c.who)
				assert.Equal(t, c.want, p.routed(t))
			}
			ask(http.MethodGet, "/", "eve")
			assert.Contains(t, []string{"GET / 503 UNSPECIFIED of-eve", "GET / 502 UNSPECIFIED of-eve"}, p.routed(t))
			if version == "HTTP/2" {
				ask(http.MethodPost, "/grpc", "alice")
				assert.Equal(t, "POST /grpc 200 LAPTOP of-alice grpc 5", p.routed(t))
			}

			p.table.Set(nil)
			ask(http.MethodGet, "/after", "")
			m, _ := p.report.Take(time.Now())
			assert.Nil(t, m)
		})
	}
}

// An upgraded connection is reported at once, and one that is not HTTP when it ends.
func TestTailedConnections(t *testing.T) {
	p := three(t)
	p.table.Set(nil, uint32(p.port))
	c := p.dial(t)
	_, err := io.WriteString(c,
		"GET /upgrade?room=1 HTTP/1.1\r\nHost: catalog\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
	require.NoError(t, err)
	answer, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	_ = answer.Body.Close()
	assert.Equal(t, "GET /upgrade 101 APP ", p.routed(t))

	for name, sent := range map[string]string{
		"not HTTP": "*1\r\n$4\r\nPING\r\n",
		"unclear":  "GET / HTTP/1.1\r\nHost: a\r\nX-Dev : alice\r\n\r\n",
		"nothing":  "",
	} {
		t.Run(name, func(t *testing.T) {
			c := p.dial(t)
			_, err := io.WriteString(c, sent)
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			_, _ = io.ReadAll(c)
			assert.Equal(t, "  0 APP ", p.routed(t))
		})
	}
}
