package agent

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	testpb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"

	"github.com/detour-dev/detour/pkg/agentconfig"
	"github.com/detour-dev/detour/pkg/tlspeek"
	"github.com/detour-dev/detour/pkg/traffic/agent/apptls"
	"github.com/detour-dev/detour/pkg/traffic/agent/upstream"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// tlsApp is a service of both versions of HTTP behind TLS.
func tlsApp(t *testing.T, config *tls.Config) uint16 {
	t.Helper()
	config.NextProtos = []string{"h2", "http/1.1"}
	serveApp := handler(t, says("app"))
	return serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(tls.Server(c, config)) })
}

// Without its certificate TLS cannot be ended: every byte goes to the app, whoever intercepts,
// and the manager is told.
func TestTLSPassesUnreadWithoutACertificate(t *testing.T) {
	certificate, roots := newCertificate(t)
	alice := newLaptop(t, ok, handler(t, says("alice")))
	p := newPod(t, "127.0.0.1", tlsApp(t, &tls.Config{Certificates: []tls.Certificate{certificate}}), alice.authority)
	p.ports = apptls.NewPorts(agentconfig.Config{Ports: []agentconfig.Port{{App: p.port}}}, p.log)
	p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
	for _, versions := range []func(*http.Protocols){
		func(v *http.Protocols) { v.SetHTTP1(true) },
		func(v *http.Protocols) { v.SetHTTP2(true) },
	} {
		protocols := new(http.Protocols)
		versions(protocols)
		transport := &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{
			RootCAs: roots, ServerName: serverName,
		}}
		t.Cleanup(transport.CloseIdleConnections)
		for range 2 {
			r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+p.address+"/",
				strings.NewReader("body"))
			require.NoError(t, err)
			r.Header.Set("X-Dev", "alice")
			answer, err := transport.RoundTrip(r)
			require.NoError(t, err)
			assert.Equal(t, "app / body", text(t, answer))
			_ = answer.Body.Close()
		}
	}
	assert.Empty(t, alice.headers)
	require.Eventually(t, func() bool { return len(p.ports.States()) == 1 }, patience, patience/1000,
		"a client's TLS makes the agent look")
	assert.Len(t, p.ports.Changed(), 1)
}

// The app is asked once, when its port is to be served by request. An answer in anything but TLS
// shows that the app does not speak it.
func TestPortsAreProbedOnce(t *testing.T) {
	certificate, _ := newCertificate(t)
	secured := tlsApp(t, &tls.Config{Certificates: []tls.Certificate{certificate}})
	plain, absent := app(t), nobody(t)
	unprobed := tlsApp(t, &tls.Config{Certificates: []tls.Certificate{certificate}})
	p := newPod(t, "127.0.0.1", plain, nil)
	var config agentconfig.Config
	var intercepts []*agentv1.Intercept
	for _, number := range []uint16{secured, plain, absent} {
		config.Ports = append(config.Ports, agentconfig.Port{App: number})
		i := p.person("alice", "127.0.0.1:1")
		i.Port, i.Uid = uint32(number), i.Uid+string(rune('a'+len(intercepts)))
		intercepts = append(intercepts, i)
	}
	config.Ports = append(config.Ports, agentconfig.Port{App: unprobed})
	p.ports = apptls.NewPorts(config, p.log)
	p.table.Set(append(intercepts, &agentv1.Intercept{Uid: "global", Port: uint32(unprobed)}))
	p.ports.Probe(t.Context(), p.ByRequest)
	states := p.ports.States()
	require.Len(t, states, 1)
	assert.Equal(t, uint32(secured), states[0].Port)
	assert.True(t, states[0].Tls)
	assert.True(t, p.ports.Known(plain))
	assert.False(t, p.ports.Known(absent), "it is asked again")
	assert.False(t, p.ports.Known(unprobed), "a global intercept needs not know")
}

// A client that sends its ClientHello late, because it opened the connection ahead, reaches the
// app as well.
func TestLateClientHelloReachesTheApp(t *testing.T) {
	certificate, roots := newCertificate(t)
	alice := newLaptop(t, ok, handler(t, says("alice")))
	p := newPod(t, "127.0.0.1", tlsApp(t, &tls.Config{Certificates: []tls.Certificate{certificate}}), alice.authority)
	p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
	raw := p.dial(t)
	time.Sleep(upstream.FirstBytesTimeout * 2)
	c := tls.Client(raw, &tls.Config{RootCAs: roots, ServerName: serverName})
	_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: catalog\r\nX-Dev: alice\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Contains(t, string(answer), "app / ")
}

// secret writes a certificate as a Secret is mounted.
func secret(t *testing.T, certificate tls.Certificate) *tlspeek.Certificate {
	t.Helper()
	dir := t.TempDir()
	private, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]},
		"tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	return tlspeek.NewCertificate("web-tls", dir)
}

// looked returns a pod whose agent has the app's certificate, and whose service alice (over TLS)
// and bob (in plaintext) intercept for themselves.
func looked(t *testing.T, change func(*tls.Config)) (p *pod, roots *x509.CertPool) {
	t.Helper()
	certificate, roots := newCertificate(t)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}}
	change(config)
	developer, _ := newCertificate(t)
	serveAlice := handler(t, says("alice"))
	alice := newLaptop(t, ok, func(c net.Conn) {
		serveAlice(tls.Server(c,
			&tls.Config{Certificates: []tls.Certificate{developer}, NextProtos: []string{"h2", "http/1.1"}}))
	})
	bob := newLaptop(t, ok, handler(t, says("bob")))
	bob.authority.AddCert(alice.certificate)
	p = newPod(t, "127.0.0.1", tlsApp(t, config), bob.authority)
	p.ports.SetCertificate(p.port, secret(t, certificate))
	mine, his := p.person("alice", alice.address), p.person("bob", bob.address)
	his.LocalPlaintext = true
	p.table.Set([]*agentv1.Intercept{mine, his})
	p.ports.Probe(t.Context(), p.ByRequest)
	return p, roots
}

func secureTransports(t *testing.T, roots *x509.CertPool) map[string]*http.Transport {
	t.Helper()
	all := map[string]*http.Transport{}
	for version, set := range map[string]func(*http.Protocols){
		"HTTP/1.1": func(v *http.Protocols) { v.SetHTTP1(true) },
		"HTTP/2.0": func(v *http.Protocols) { v.SetHTTP2(true) },
	} {
		protocols := new(http.Protocols)
		set(protocols)
		all[version] = &http.Transport{Protocols: protocols, TLSClientConfig: &tls.Config{
			RootCAs: roots, ServerName: serverName,
		}}
		t.Cleanup(all[version].CloseIdleConnections)
	}
	return all
}

func (p *pod) askSecure(
	ctx context.Context, transport *http.Transport, method, path, who, body string,
) (*http.Response, string, error) {
	r, err := http.NewRequestWithContext(ctx, method, "https://"+p.address+path, strings.NewReader(body))
	if err != nil {
		return nil, "", err
	}
	if who != "" {
		r.Header.Set("X-Dev", who)
	}
	answer, err := transport.RoundTrip(r)
	if err != nil {
		return nil, "", err
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	return answer, string(page), err
}

// With the app's certificate each request goes where it belongs, in either version of HTTP, on
// connections that are kept. Clients see the app's certificate and its choice of protocol.
func TestTLSIsRoutedByRequest(t *testing.T) {
	p, roots := looked(t, func(*tls.Config) {})
	require.Empty(t, p.ports.States())
	for version, transport := range secureTransports(t, roots) {
		t.Run(version, func(t *testing.T) {
			var clients sync.WaitGroup
			for client := range 8 {
				clients.Go(func() {
					for i := range 20 {
						who := []string{"alice", "bob", "carol", ""}[(client+i)%4]
						want := who
						if who == "carol" || who == "" {
							want = "app"
						}
						body := strings.Repeat("b", i*1000)
						answer, page, err := p.askSecure(t.Context(), transport, http.MethodPost,
							"/a%2Fb?x=1", who, body)
						if assert.NoError(t, err) {
							assert.Equal(t, want+" /a%2Fb?x=1 "+body, page)
							assert.Equal(t, version, answer.Proto)
							assert.Equal(t, http.StatusOK, answer.StatusCode)
						}
					}
				})
			}
			clients.Wait()
			answer, page, err := p.askSecure(t.Context(), transport, http.MethodGet, "/trailers", "alice", "")
			require.NoError(t, err)
			assert.Equal(t, "alice", page)
			assert.Equal(t, "42", answer.Trailer.Get("X-Sum"))
		})
	}
}

// TLS that the agent cannot end passes unread, whether the app or the client is the reason.
func TestTLSThatCannotEndHerePassesUnread(t *testing.T) {
	other, otherRoots := newCertificate(t)
	for name, c := range map[string]struct {
		change  func(*tls.Config)
		client  func(*tls.Config)
		problem string
	}{
		"another certificate": {
			change:  func(c *tls.Config) { c.Certificates = []tls.Certificate{other} },
			client:  func(c *tls.Config) { c.RootCAs = otherRoots },
			problem: "the app presents another certificate than that of Secret web-tls",
		},
		"client certificates": {
			func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert },
			func(c *tls.Config) { c.Certificates = []tls.Certificate{other} },
			"the app requires client certificates, which the agent cannot present in the clients' place",
		},
		"an old client": {
			change: func(c *tls.Config) { c.MinVersion = tls.VersionTLS10 },
			client: func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 },
		},
		"another name": {
			func(c *tls.Config) {
				mine := c.Certificates[0]
				c.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
					if h.ServerName == serverName {
						return &mine, nil
					}
					return &other, nil
				}
				c.Certificates = nil
			},
			func(c *tls.Config) { c.RootCAs, c.ServerName, c.InsecureSkipVerify = nil, "another.name", true }, "",
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, roots := looked(t, c.change)
			states := p.ports.States()
			if c.problem == "" {
				require.Empty(t, states)
			} else {
				require.Len(t, states, 1)
				require.Equal(t, c.problem, states[0].Problem)
				require.False(t, states[0].Tls)
			}
			for _, transport := range secureTransports(t, roots) {
				c.client(transport.TLSClientConfig)
				_, page, err := p.askSecure(t.Context(), transport, http.MethodPost, "/", "alice", "body")
				require.NoError(t, err)
				assert.Equal(t, "app / body", page)
			}
		})
	}
}

// The app answers for a laptop whose process does not speak TLS, or that has gone.
func TestTLSFailsOpen(t *testing.T) {
	p, roots := looked(t, func(*tls.Config) {})
	plain := newLaptop(t, ok, answers("plain"))
	p.tls.RootCAs.AddCert(plain.certificate)
	mine := p.person("alice", plain.address)
	gone := p.person("bob", fmt.Sprintf("127.0.0.1:%d", nobody(t)))
	p.table.Set([]*agentv1.Intercept{mine, gone})
	for version, transport := range secureTransports(t, roots) {
		t.Run(version, func(t *testing.T) {
			for range 3 {
				for _, who := range []string{"alice", "bob", ""} {
					_, page, err := p.askSecure(t.Context(), transport, http.MethodPost, "/", who, "body")
					require.NoError(t, err)
					assert.Equal(t, "app / body", page)
				}
			}
		})
	}
}

// A process that speaks HTTP/1 in plaintext gets requests on connections that are kept. Once it
// is unreachable, the app answers.
func TestTLSFailsOpenLater(t *testing.T) {
	p, roots := looked(t, func(*tls.Config) {})
	plain := newLaptop(t, ok, answers("plain"))
	p.tls.RootCAs.AddCert(plain.certificate)
	mine := p.person("alice", plain.address)
	mine.LocalPlaintext = true
	for version, transport := range secureTransports(t, roots) {
		t.Run(version, func(t *testing.T) {
			plain.status.Store(int32(ok))
			p.table.Set([]*agentv1.Intercept{mine})
			for range 3 {
				_, page, err := p.askSecure(t.Context(), transport, http.MethodPost, "/", "alice", "body")
				require.NoError(t, err)
				assert.Equal(t, "plain / body", page)
			}
			plain.status.Store(int32(agentv1.RelayStatus_RELAY_STATUS_REFUSED))
			plain.cut()
			assert.EventuallyWithT(t, func(c *assert.CollectT) { // what is under way then may be lost
				_, page, err := p.askSecure(t.Context(), transport, http.MethodPost, "/", "alice", "body")
				assert.NoError(c, err)
				assert.Equal(c, "app / body", page)
			}, patience, time.Millisecond)
			for range 3 {
				_, page, err := p.askSecure(t.Context(), transport, http.MethodPost, "/", "alice", "body")
				require.NoError(t, err)
				assert.Equal(t, "app / body", page)
			}
			p.table.Set(nil)
		})
	}
}

// calls is gRPC's own test service. Each of its answers has its name.
type calls struct {
	testpb.UnimplementedTestServiceServer
	name string
}

func (s *calls) UnaryCall(context.Context, *testpb.SimpleRequest) (*testpb.SimpleResponse, error) {
	return &testpb.SimpleResponse{Payload: &testpb.Payload{Body: []byte(s.name)}}, nil
}

func (s *calls) FullDuplexCall(
	stream grpc.BidiStreamingServer[testpb.StreamingOutputCallRequest, testpb.StreamingOutputCallResponse],
) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return nil //nolint:nilerr // the client is done
		}
		if err := stream.Send(&testpb.StreamingOutputCallResponse{
			Payload: &testpb.Payload{Body: append([]byte(s.name+" "), m.GetPayload().GetBody()...)},
		}); err != nil {
			return err
		}
	}
}

// called serves gRPC, and pages that tell in which version of HTTP they were requested.
func called(t *testing.T, name string) func(net.Conn) {
	t.Helper()
	server := grpc.NewServer()
	testpb.RegisterTestServiceServer(server, &calls{name: name})
	t.Cleanup(server.Stop)
	return handler(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
			server.ServeHTTP(w, r)
			return
		}
		fmt.Fprint(w, name, " ", r.Proto)
	}))
}

// gRPC inside TLS goes to a process that speaks TLS, and to one that speaks plaintext: that one
// gets gRPC over HTTP/2, and all else over HTTP/1.
func TestTLSRoutesGRPC(t *testing.T) {
	certificate, roots := newCertificate(t)
	config := &tls.Config{Certificates: []tls.Certificate{certificate}, NextProtos: []string{"h2", "http/1.1"}}
	serveApp, serveAlice, serveBob := called(t, "app"), called(t, "alice"), called(t, "bob")
	alice := newLaptop(t, ok, func(c net.Conn) { serveAlice(tls.Server(c, config)) })
	bob := newLaptop(t, ok, serveBob)
	bob.authority.AddCert(alice.certificate)
	p := newPod(t, "127.0.0.1", serve(t, "127.0.0.1", func(c *net.TCPConn) { serveApp(tls.Server(c, config)) }),
		bob.authority)
	p.ports.SetCertificate(p.port, secret(t, certificate))
	his := p.person("bob", bob.address)
	his.LocalPlaintext = true
	p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address), his})
	p.ports.Probe(t.Context(), p.ByRequest)

	conn, err := grpc.NewClient("passthrough:///"+p.address,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: serverName})))
	require.NoError(t, err)
	defer conn.Close()
	client := testpb.NewTestServiceClient(conn)
	for range 3 {
		for who, want := range map[string]string{
			"alice": "alice HTTP/2.0", "bob": "bob HTTP/1.1", "carol": "app HTTP/2.0",
		} {
			by, _, _ := strings.Cut(want, " ")
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(t.Context(), "x-dev", who), patience)
			answer, err := client.UnaryCall(ctx, &testpb.SimpleRequest{})
			require.NoError(t, err, who)
			assert.Equal(t, by, string(answer.GetPayload().GetBody()))
			stream, err := client.FullDuplexCall(ctx)
			require.NoError(t, err, who)
			for _, message := range []string{"one", "two"} {
				require.NoError(t,
					stream.Send(&testpb.StreamingOutputCallRequest{Payload: &testpb.Payload{Body: []byte(message)}}))
				m, err := stream.Recv()
				require.NoError(t, err, who)
				assert.Equal(t, by+" "+message, string(m.GetPayload().GetBody()))
			}
			require.NoError(t, stream.CloseSend())
			_, err = stream.Recv()
			require.ErrorIs(t, err, io.EOF, who)
			cancel()

			_, page, err := p.askSecure(t.Context(), secureTransports(t, roots)["HTTP/2.0"], http.MethodPost,
				"/", who, "body")
			require.NoError(t, err)
			assert.Equal(t, want, page)
		}
	}
}

// hasty answers each request before it has read the body, and closes: with an unread body that
// is a reset.
func hasty(c net.Conn) {
	if _, err := http.ReadRequest(bufio.NewReader(c)); err != nil {
		return
	}
	_, _ = io.WriteString(c, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 5\r\nConnection: close\r\n\r\nalice")
}

// A process may answer and close before it has read a body. Clients get the answer.
func TestAnswerBeforeTheBodyWasRead(t *testing.T) {
	p, roots := looked(t, func(*tls.Config) {})
	m := newLaptop(t, ok, hasty)
	p.tls.RootCAs.AddCert(m.certificate)
	alice := p.person("alice", m.address)
	alice.LocalPlaintext = true
	p.table.Set([]*agentv1.Intercept{alice})
	transport := secureTransports(t, roots)["HTTP/2.0"]
	for _, size := range []int{10, 100_000, 4 << 20} {
		for range 10 {
			answer, page, err := p.askSecure(t.Context(), transport, http.MethodPost, "/", "alice",
				strings.Repeat("x", size))
			require.NoError(t, err, size)
			require.Equal(t, "413 alice", fmt.Sprint(answer.StatusCode, " ", page), size)
		}
	}
}

// A renewed Secret is used, and with one that has become useless TLS passes unread.
func TestTLSFollowsTheSecret(t *testing.T) {
	p, roots := looked(t, func(*tls.Config) {})
	transport := secureTransports(t, roots)["HTTP/1.1"]
	_, page, err := p.askSecure(t.Context(), transport, http.MethodGet, "/", "alice", "")
	require.NoError(t, err)
	require.Equal(t, "alice / ", page)
	other, _ := newCertificate(t)
	p.ports.SetCertificate(p.port, secret(t, other))
	p.ports.Reprobe(t.Context(), p.port)
	require.Len(t, p.ports.Changed(), 1)
	require.Contains(t, p.ports.States()[0].Problem, "another certificate")
	transport.CloseIdleConnections()
	_, page, err = p.askSecure(t.Context(), transport, http.MethodGet, "/", "alice", "")
	require.NoError(t, err)
	require.Equal(t, "app / ", page)
}

// Inside TLS there may be any protocol: what is not HTTP reaches the app, whoever speaks first.
func TestTLSWithoutHTTP(t *testing.T) {
	certificate, roots := newCertificate(t)
	for name, app := range map[string]func(net.Conn){
		"the client first": func(c net.Conn) { _, _ = io.Copy(c, c) },
		"the app first": func(c net.Conn) {
			_, _ = io.WriteString(c, "220 mail\r\n")
			_, _ = io.Copy(c, c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			alice := newLaptop(t, ok, answers("alice"))
			number := serve(t, "127.0.0.1", func(c *net.TCPConn) {
				s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate}})
				app(s)
				_ = s.Close()
			})
			p := newPod(t, "127.0.0.1", number, alice.authority)
			p.ports.SetCertificate(p.port, secret(t, certificate))
			p.table.Set([]*agentv1.Intercept{p.person("alice", alice.address)})
			c := tls.Client(p.dial(t), &tls.Config{RootCAs: roots, ServerName: serverName})
			if name == "the app first" {
				b := make([]byte, 10)
				_, err := io.ReadFull(c, b)
				require.NoError(t, err)
				require.Equal(t, "220 mail\r\n", string(b))
			}
			_, err := io.WriteString(c, "*1\r\n$4\r\nPING\r\n")
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			got, err := io.ReadAll(c)
			require.NoError(t, err)
			require.Equal(t, "*1\r\n$4\r\nPING\r\n", string(got))
			require.Empty(t, alice.headers)
		})
	}
}

// Copies of requests inside TLS reach the laptop, in either version of HTTP.
func TestRequestsInsideTLSAreCopied(t *testing.T) {
	p, roots := looked(t, func(*tls.Config) {})
	copies := make(chan string, 10)
	watch := handler(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		copies <- r.Method + " " + string(body)
	}))
	carol := newLaptop(t, ok, watch)
	p.tls.RootCAs.AddCert(carol.certificate)
	p.table.Set([]*agentv1.Intercept{{
		Uid: "tap", Port: uint32(p.port), RelayAddress: carol.address, Wiretap: true, LocalPlaintext: true,
	}})
	for version, transport := range secureTransports(t, roots) {
		_, page, err := p.askSecure(t.Context(), transport, http.MethodPost, "/", "", version)
		require.NoError(t, err)
		assert.Equal(t, "app / "+version, page)
		transport.CloseIdleConnections()
		select {
		case c := <-copies:
			assert.Equal(t, "POST "+version, c)
		case <-time.After(patience):
			t.Fatal("no copy came")
		}
	}
}
