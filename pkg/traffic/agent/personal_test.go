package agent

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// person returns an intercept of the requests that have the header x-dev: name.
func (p *pod) person(name, relay string) *agentv1.Intercept {
	return &agentv1.Intercept{
		Uid:          "of-" + name,
		Port:         uint32(p.port),
		RelayAddress: relay,
		Token:        []byte("secret"),
		Match:        &agentv1.Match{Headers: []*agentv1.ValueMatch{{Name: "x-dev", Value: name}}},
	}
}

// handler returns a function that gives connections to a real HTTP server of both versions.
func handler(t *testing.T, h http.Handler) func(net.Conn) {
	t.Helper()
	feed := &fed{conns: make(chan net.Conn), closed: make(chan struct{})}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s := &http.Server{Handler: h, Protocols: protocols, ReadHeaderTimeout: patience}
	var serving sync.WaitGroup
	serving.Go(func() { _ = s.Serve(feed) })
	t.Cleanup(func() { _ = s.Close(); serving.Wait() })
	return func(c net.Conn) {
		done := make(chan struct{})
		var once sync.Once
		select {
		case feed.conns <- &fedConn{c, func() { once.Do(func() { close(done) }) }}:
			<-done
		case <-feed.closed:
		}
	}
}

type fedConn struct {
	net.Conn
	closed func()
}

func (c *fedConn) Close() error { c.closed(); return c.Conn.Close() }

type fed struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (f *fed) Accept() (net.Conn, error) {
	select {
	case c := <-f.conns:
		return c, nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}
func (f *fed) Close() error   { f.once.Do(func() { close(f.closed) }); return nil }
func (f *fed) Addr() net.Addr { return &net.TCPAddr{} }

// says returns a service that answers with its name and what it got, and that does on some paths
// what services do.
func says(name string) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", name, r.URL.RequestURI(), body)
	})
	mux.HandleFunc("/sum", func(w http.ResponseWriter, r *http.Request) {
		hash := sha256.New()
		_, _ = io.Copy(hash, r.Body)
		fmt.Fprintf(w, "%s %x", name, hash.Sum(nil))
	})
	mux.HandleFunc("/trailers", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprint(w, name)
		w.Header().Set("X-Sum", "42")
	})
	// Says each line back as soon as it has come: both directions at once.
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		_ = c.EnableFullDuplex()
		w.WriteHeader(http.StatusOK)
		_ = c.Flush()
		for in := bufio.NewReader(r.Body); ; {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(w, name+" "+line)
			_ = c.Flush()
		}
	})
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "echo")
		w.WriteHeader(http.StatusSwitchingProtocols)
		c, in, err := http.NewResponseController(w).Hijack()
		if err != nil {
			return
		}
		defer c.Close()
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			fmt.Fprint(c, name+" "+line)
		}
	})
	return mux
}

// three returns a pod whose service two people intercept for themselves.
func three(t *testing.T) *pod {
	t.Helper()
	serveApp := handler(t, says("app"))
	alice, bob := newLaptop(t, ok, handler(t, says("alice"))), newLaptop(t, ok, handler(t, says("bob")))
	bob.authority.AddCert(alice.certificate)
	p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), bob.authority)
	p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address), p.person("bob", bob.address)})
	return p
}

// transports returns real clients that keep their connections, by version of HTTP.
func transports(t *testing.T) map[string]*http.Transport {
	t.Helper()
	one, two := new(http.Protocols), new(http.Protocols)
	one.SetHTTP1(true)
	two.SetUnencryptedHTTP2(true)
	all := map[string]*http.Transport{"HTTP/1.1": {Protocols: one}, "HTTP/2": {Protocols: two}}
	for _, transport := range all {
		t.Cleanup(transport.CloseIdleConnections)
	}
	return all
}

func (p *pod) ask(t *testing.T, transport *http.Transport, method, path, who string, body io.Reader) *http.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, method, "http://"+p.address+path, body)
	require.NoError(t, err)
	if who != "" {
		r.Header.Set("X-Dev", who)
	}
	answer, err := transport.RoundTrip(r)
	require.NoError(t, err)
	t.Cleanup(func() { _ = answer.Body.Close() })
	return answer
}

func text(t *testing.T, r *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(b)
}

// Each request goes where its header says, on one connection and on many.
func TestEachRequestGoesWhereItBelongs(t *testing.T) {
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			p := three(t)
			var clients sync.WaitGroup
			for client := range 8 {
				clients.Go(func() {
					for i := range 30 {
						who := []string{"alice", "bob", "carol", ""}[(client+i)%4]
						want := who
						if who == "carol" || who == "" {
							want = "app"
						}
						method, body := http.MethodGet, ""
						if i%3 == 0 {
							method, body = http.MethodPost, strings.Repeat("b", i*100)
						}
						answer := p.ask(t, transport, method, "/a%2Fb?x=1;y&z", who, strings.NewReader(body))
						assert.Equal(t, want+" /a%2Fb?x=1;y&z "+body, text(t, answer))
					}
				})
			}
			clients.Wait()
		})
	}
}

func TestWhatHTTPCanDo(t *testing.T) {
	for version, transport := range transports(t) {
		for _, who := range []string{"alice", "app"} {
			t.Run(version+" to "+who, func(t *testing.T) {
				p := three(t)
				t.Run("HEAD", func(t *testing.T) {
					for range 3 {
						answer := p.ask(t, transport, http.MethodHead, "/", who, nil)
						assert.Empty(t, text(t, answer))
					}
				})
				t.Run("large body without a length", func(t *testing.T) {
					const size = 30 << 20
					hash := sha256.New()
					body := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{}), size), hash)
					answer := p.ask(t, transport, http.MethodPost, "/sum", who, struct{ io.Reader }{body})
					assert.Equal(t, fmt.Sprintf("%s %x", who, hash.Sum(nil)), text(t, answer))
				})
				t.Run("trailers", func(t *testing.T) {
					answer := p.ask(t, transport, http.MethodGet, "/trailers", who, nil)
					assert.Equal(t, who, text(t, answer))
					assert.Equal(t, "42", answer.Trailer.Get("X-Sum"))
				})
				t.Run("both directions at once", func(t *testing.T) {
					out, in := io.Pipe()
					answer := p.ask(t, transport, http.MethodPost, "/echo", who, out)
					lines := bufio.NewReader(answer.Body)
					for i := range 5 {
						fmt.Fprintf(in, "line %d\n", i)
						line, err := lines.ReadString('\n')
						require.NoError(t, err)
						assert.Equal(t, fmt.Sprintf("%s line %d\n", who, i), line)
					}
					require.NoError(t, in.Close())
					assert.Empty(t, text(t, answer))
				})
				t.Run("100-continue", func(t *testing.T) {
					body := &allowed{Reader: strings.NewReader("body")}
					leave := httptrace.WithClientTrace(t.Context(),
						&httptrace.ClientTrace{Got100Continue: func() { body.given.Store(true) }})
					r, err := http.NewRequestWithContext(leave, http.MethodPut, "http://"+p.address+"/", body)
					require.NoError(t, err)
					r.ContentLength = 4
					r.Header.Set("Expect", "100-continue")
					r.Header.Set("X-Dev", who)
					slow := transport.Clone()
					slow.ExpectContinueTimeout = patience
					defer slow.CloseIdleConnections()
					answer, err := slow.RoundTrip(r)
					require.NoError(t, err)
					defer answer.Body.Close()
					assert.Equal(t, who+" / body", text(t, answer))
				})
			})
		}
	}
}

// allowed is a body that must not be read before the server has sent 100 Continue, unless the
// client gives up waiting for it.
type allowed struct {
	io.Reader
	given atomic.Bool
}

func (b *allowed) Read(to []byte) (int, error) {
	if !b.given.Load() {
		return 0, errors.New("nobody gave leave to send the body")
	}
	return b.Reader.Read(to)
}

// A connection that is upgraded, such as for WebSockets, stays with the upstream that upgraded
// it.
func TestUpgradedConnectionStays(t *testing.T) {
	p := three(t)
	for _, who := range []string{"alice", "app"} {
		c := p.dial(t)
		_, err := fmt.Fprintf(c,
			"GET /upgrade HTTP/1.1\r\nHost: catalog\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Dev: %s\r\n\r\n", who)
		require.NoError(t, err)
		in := bufio.NewReader(c)
		answer, err := http.ReadResponse(in, nil)
		require.NoError(t, err)
		_ = answer.Body.Close()
		require.Equal(t, http.StatusSwitchingProtocols, answer.StatusCode)
		for range 3 {
			_, err = io.WriteString(c, "GET / HTTP/1.1\n")
			require.NoError(t, err)
			line, err := in.ReadString('\n')
			require.NoError(t, err)
			assert.Equal(t, who+" GET / HTTP/1.1\n", line)
		}
	}
}

// The host is a header like others, whatever a version of HTTP calls it.
func TestHostIsMatchedAsAHeader(t *testing.T) {
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			p := three(t)
			alice := p.table.Port(p.port).Personal[0].RelayAddress
			preview := p.person("alice", alice)
			preview.Match = &agentv1.Match{Headers: []*agentv1.ValueMatch{{Name: "Host", Value: "preview.shop"}}}
			p.table.Set([]*agentv1.Intercept{preview})
			for host, want := range map[string]string{"preview.shop": "alice / ", "shop": "app / "} {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.address+"/", nil)
				require.NoError(t, err)
				r.Host = host
				answer, err := transport.RoundTrip(r)
				require.NoError(t, err)
				assert.Equal(t, want, text(t, answer), host)
				_ = answer.Body.Close()
			}
		})
	}
}

// Pipelined requests are answered in their order, each by the upstream that it belongs to.
func TestPipelining(t *testing.T) {
	p := three(t)
	c := p.dial(t)
	for _, who := range []string{"alice", "", "bob", "alice"} {
		_, err := fmt.Fprintf(c, "POST /%s HTTP/1.1\r\nHost: catalog\r\nX-Dev: %s\r\n"+
			"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", who, who)
		require.NoError(t, err)
	}
	in := bufio.NewReader(c)
	for _, want := range []string{"alice /alice abc", "app / abc", "bob /bob abc", "alice /alice abc"} {
		answer, err := http.ReadResponse(in, nil)
		require.NoError(t, err)
		assert.Equal(t, want, text(t, answer))
	}
}

// A request that could be read in two ways is not read at all: the app gets the very bytes that
// the client sent, whoever they were meant for.
func TestUnclearRequestsReachTheAppUnchanged(t *testing.T) {
	for name, sent := range map[string]string{
		"length and chunks":        "POST / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n\r\n",
		"two lengths":              "POST / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
		"a length with a sign":     "POST / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\nContent-Length: +1\r\n\r\na",
		"a coding that hides":      "POST / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
		"a space before the colon": "GET / HTTP/1.1\r\nHost: a\r\nX-Dev : alice\r\n\r\n",
		"a folded line":            "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\r\n folded\r\n\r\n",
		"a bare line feed":         "GET / HTTP/1.1\nHost: a\nX-Dev: alice\n\n",
		"a bare carriage return":   "GET / HTTP/1.1\r\nHost: a\r\nX-A: b\rX-Dev: alice\r\n\r\n",
		"a zero byte":              "GET / HTTP/1.1\r\nHost: a\r\nX-Dev: alice\x00\r\n\r\n",
		"no host":                  "GET / HTTP/1.1\r\nX-Dev: alice\r\n\r\n",
		"two hosts":                "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\nX-Dev: alice\r\n\r\n",
		"another version":          "GET / HTTP/3.0\r\nHost: a\r\nX-Dev: alice\r\n\r\n",
		"chunks in HTTP/1.0":       "POST / HTTP/1.0\r\nHost: a\r\nX-Dev: alice\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a tunnel":                 "CONNECT db:5432 HTTP/1.1\r\nHost: db\r\nX-Dev: alice\r\n\r\nbytes",
		"not HTTP":                 "*1\r\n$4\r\nPING\r\n",
		"not HTTP, with a space":   "SET key value\r\n",
		"binary":                   "\x16\x03\x01\x02\x00\x01",
		"half a head":              "GET / HTTP/1.1\r\nHo",
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan []byte, 1)
			port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
				all, _ := io.ReadAll(c)
				got <- all
			})
			m := newLaptop(t, ok, answers("laptop"))
			p := newPod(t, "127.0.0.1", port, m.authority)
			p.table.Set([]*agentv1.Intercept{p.person("alice", m.address)})
			c := p.dial(t)
			_, err := io.WriteString(c, sent)
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			select {
			case all := <-got:
				assert.Equal(t, sent, string(all))
			case <-time.After(patience):
				t.Fatal("the app got nothing")
			}
			assert.Empty(t, m.headers, "nothing reached the laptop")
		})
	}
}

// A server that speaks first is heard although the requests of its port are looked at.
func TestServerSpeaksFirstOnAPersonalPort(t *testing.T) {
	port := serve(t, "127.0.0.1", func(c *net.TCPConn) {
		_, _ = io.WriteString(c, "220 mail\r\n")
		_, _ = io.Copy(c, c)
	})
	m := newLaptop(t, ok, answers("laptop"))
	p := newPod(t, "127.0.0.1", port, m.authority)
	p.table.Set([]*agentv1.Intercept{p.person("alice", m.address)})
	c := p.dial(t)
	greeting := make([]byte, 10)
	_, err := io.ReadFull(c, greeting)
	require.NoError(t, err)
	assert.Equal(t, "220 mail\r\n", string(greeting))
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\n")
	require.NoError(t, err)
	_, err = io.ReadFull(c, greeting)
	require.NoError(t, err)
	assert.Equal(t, "GET / HTTP", string(greeting))
}

// A connection that is opened ahead of its first request is routed when the request arrives.
func TestConnectionOpenedAhead(t *testing.T) {
	p := three(t)
	b := p.browse(t)
	time.Sleep(upstream.FirstBytesTimeout * 2)
	_, err := io.WriteString(b, "GET / HTTP/1.1\r\nHost: catalog\r\nX-Dev: alice\r\n\r\n")
	require.NoError(t, err)
	assert.Equal(t, "alice / ", b.answer(t))
}

// The app answers for a laptop that is unreachable. Nobody else notices.
func TestPersonalInterceptFailsOpen(t *testing.T) {
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			serveApp := handler(t, says("app"))
			bob := newLaptop(t, ok, handler(t, says("bob")))
			p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), bob.authority)
			p.table.Set([]*agentv1.Intercept{
				p.person("alice", fmt.Sprintf("127.0.0.1:%d", nobody(t))), p.person("bob", bob.address),
			})
			for range 3 {
				assert.Equal(t, "app / body",
					text(t, p.ask(t, transport, http.MethodPost, "/", "alice", bytes.NewReader([]byte("body")))))
				assert.Equal(t, "bob / body",
					text(t, p.ask(t, transport, http.MethodPost, "/", "bob", bytes.NewReader([]byte("body")))))
			}
		})
	}
}

// Open connections follow intercepts that begin and end: from nothing to personal, beside a
// global one, and back.
func TestOpenConnectionsFollowIntercepts(t *testing.T) {
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			serveApp := handler(t, says("app"))
			alice, all := newLaptop(t, ok, handler(t, says("alice"))), newLaptop(t, ok, handler(t, says("global")))
			all.authority.AddCert(alice.certificate)
			p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), all.authority)
			global := &agentv1.Intercept{
				Uid: "global", Port: uint32(p.port), RelayAddress: all.address, Token: []byte("secret"),
			}
			personal := p.person("alice", alice.address)
			for _, step := range []struct {
				intercepts       []*agentv1.Intercept
				marked, unmarked string
			}{
				{nil, "app", "app"},
				{[]*agentv1.Intercept{personal}, "alice", "app"},
				{[]*agentv1.Intercept{personal, global}, "alice", "global"},
				{[]*agentv1.Intercept{global}, "global", "global"},
				{[]*agentv1.Intercept{personal, global}, "alice", "global"},
				{[]*agentv1.Intercept{personal}, "alice", "app"},
				{nil, "app", "app"},
			} {
				p.table.Set(step.intercepts)
				require.Eventually(t, func() bool {
					return text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)) == step.marked+" / " &&
						text(t, p.ask(t, transport, http.MethodGet, "/", "", nil)) == step.unmarked+" / "
				}, patience, 5*time.Millisecond, "%v", step)
			}
		})
	}
}

// If the app must not answer in place of the laptop, the client gets an error at once.
func TestErrorOnFailure(t *testing.T) {
	serveApp := handler(t, says("app"))
	bob := newLaptop(t, ok, handler(t, says("bob")))
	p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(c) }), bob.authority)
	alice := p.person("alice", fmt.Sprintf("127.0.0.1:%d", nobody(t)))
	alice.ErrorOnFailure = true
	p.table.Set([]*agentv1.Intercept{alice, p.person("bob", bob.address)})
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			for range 3 {
				assert.GreaterOrEqual(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil).StatusCode, 502)
				assert.Equal(t, "bob / ", text(t, p.ask(t, transport, http.MethodGet, "/", "bob", nil)))
				assert.Equal(t, "app / ", text(t, p.ask(t, transport, http.MethodGet, "/", "", nil)))
			}
		})
	}
	t.Run("all of a connection", func(t *testing.T) {
		p.table.Set([]*agentv1.Intercept{{
			Uid: "global", Port: uint32(p.port), RelayAddress: alice.RelayAddress, ErrorOnFailure: true,
		}})
		for range 3 {
			c, err := net.Dial("tcp", p.address)
			if err == nil {
				_, err = io.ReadAll(c)
				_ = c.Close()
			}
			require.ErrorIs(t, err, syscall.ECONNRESET)
		}
	})
}

// If a personal intercept begins beside a global one, the requests of an HTTP/2 connection of
// the global one are told apart.
func TestGlobalHTTP2ConnectionIsRoutedByRequest(t *testing.T) {
	for version, transport := range transports(t) {
		t.Run(version, func(t *testing.T) {
			alice, all := newLaptop(t, ok, handler(t, says("alice"))), newLaptop(t, ok, handler(t, says("global")))
			all.authority.AddCert(alice.certificate)
			p := newPod(t, "127.0.0.1", nobody(t), all.authority)
			global := &agentv1.Intercept{
				Uid: "global", Port: uint32(p.port), RelayAddress: all.address, Token: []byte("secret"),
			}
			p.table.Set([]*agentv1.Intercept{global})
			assert.Equal(t, "global / ", text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)))
			p.table.Set([]*agentv1.Intercept{global, p.person("alice", alice.address)})
			require.Eventually(t, func() bool {
				return text(t, p.ask(t, transport, http.MethodGet, "/", "alice", nil)) == "alice / "
			}, patience, 10*time.Millisecond)
			assert.Equal(t, "global / ", text(t, p.ask(t, transport, http.MethodGet, "/", "", nil)))
		})
	}
}
