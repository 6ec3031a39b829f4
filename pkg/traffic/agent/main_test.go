package agent

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/detour-dev/detour/pkg/relay"
	"github.com/detour-dev/detour/pkg/relay/mux"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patience = 10 * time.Second

// pod is a real agent on loopback, in front of an app port.
type pod struct {
	*agent
	address string // where clients dial
	port    uint16 // where the app listens, or should
	stop    func() // ends the agent and waits for its connections
}

// newPod starts an agent that listens on host and trusts relays of authority.
func newPod(t testing.TB, host string, appPort uint16, authority *x509.CertPool) *pod {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	a := newAgent(&tls.Config{RootCAs: authority, ServerName: serverName, MinVersion: tls.VersionTLS13},
		slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() { // as Run does
		assert.NoError(t, a.accept(ctx, map[uint16]*net.TCPListener{appPort: l.(*net.TCPListener)}))
	})
	stop := func() {
		cancel()
		serving.Wait()
		_ = l.Close()
		a.life.endAll()
		a.life.tasks.Wait()
	}
	t.Cleanup(stop)
	return &pod{agent: a, address: l.Addr().String(), port: appPort, stop: stop}
}

// intercept puts a global intercept in force whose relay is at address.
func (p *pod) intercept(address string) {
	p.table.Set([]*agentv1.Intercept{{
		Uid: "uid-of-the-intercept", Port: uint32(p.port), RelayAddress: address, Token: []byte("secret"),
	}})
}

// leave ends the intercept.
func (p *pod) leave() { p.table.Set(nil) }

func (p *pod) dial(t *testing.T) *net.TCPConn { return dial(t, p.address) }

func dial(t testing.TB, address string) *net.TCPConn {
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return c.(*net.TCPConn)
}

// serve accepts on host and gives every connection to handle. It waits for the handlers at the end
// of the test.
func serve(t testing.TB, host string, handle func(*net.TCPConn)) uint16 {
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	require.NoError(t, err)
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			running.Go(func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(patience))
				handle(c.(*net.TCPConn))
			})
		}
	})
	// The test's own connections and the agent end first, so that handlers which read to the end
	// do.
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// nobody returns a loopback port on which nothing listens.
func nobody(t *testing.T) uint16 {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// answers returns an HTTP/1 server that answers with its name, and with the path and body that
// it got.
func answers(name string) func(net.Conn) {
	return func(c net.Conn) {
		in := bufio.NewReader(c)
		for {
			r, err := http.ReadRequest(in)
			if err != nil {
				return
			}
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			answer := name + " " + r.URL.Path + " " + string(body)
			_, err = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(answer), answer)
			if err != nil {
				return
			}
		}
	}
}

func app(t *testing.T) uint16 {
	return serve(t, "127.0.0.1", func(c *net.TCPConn) { answers("app")(c) })
}

// browser sends its requests on one connection.
type browser struct {
	*net.TCPConn
	in *bufio.Reader
}

func (p *pod) browse(t *testing.T) *browser {
	c := p.dial(t)
	return &browser{c, bufio.NewReader(c)}
}

// get sends a request and returns the answer's body.
func (b *browser) get(t *testing.T, path string) string {
	_, err := fmt.Fprintf(b, "GET %s HTTP/1.1\r\nHost: catalog\r\n\r\n", path)
	require.NoError(t, err)
	return b.answer(t)
}

func (b *browser) answer(t *testing.T) string {
	r, err := http.ReadResponse(b.in, nil)
	require.NoError(t, err)
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	require.NoError(t, err)
	return string(body)
}

const serverName = "traffic-manager.detour.svc"

// fakeLaptop is a relay as agents see it: TLS, a header, a status, then the connection.
type fakeLaptop struct {
	address     string
	authority   *x509.CertPool
	certificate *x509.Certificate
	headers     chan *agentv1.RelayHeader // of every connection, in order
	status      atomic.Int32
	accepted    atomic.Int32 // connections
	plain       bool         // it knows of no streams
	mu          sync.Mutex
	raw         []*net.TCPConn
	ctx         context.Context // of connections that carry streams
}

// newLaptop returns a fakeLaptop that answers headers with status, and gives the connections
// that it accepts to handle.
func newLaptop(t testing.TB, status agentv1.RelayStatus, handle func(net.Conn)) *fakeLaptop {
	certificate, authority := newCertificate(t)
	leaf, err := x509.ParseCertificate(certificate.Certificate[0])
	require.NoError(t, err)
	m := &fakeLaptop{authority: authority, certificate: leaf, headers: make(chan *agentv1.RelayHeader, 100)}
	m.status.Store(int32(status))
	var cancel context.CancelFunc
	m.ctx, cancel = context.WithCancel(context.Background())
	port := serve(t, "127.0.0.1", func(raw *net.TCPConn) {
		c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS13})
		defer c.Close()
		header, err := relay.ReadHeader(c)
		if err != nil {
			return
		}
		m.accepted.Add(1)
		m.mu.Lock()
		m.raw = append(m.raw, raw)
		m.mu.Unlock()
		if header.Multiplexed && !m.plain {
			m.join(c, header, handle)
			return
		}
		m.headers <- header
		status := agentv1.RelayStatus(m.status.Load())
		if relay.WriteStatus(c, status) == nil && status == agentv1.RelayStatus_RELAY_STATUS_OK {
			handle(c)
		}
	})
	m.address = fmt.Sprintf("127.0.0.1:%d", port)
	t.Cleanup(cancel)
	return m
}

// cut resets the connections that it has.
func (m *fakeLaptop) cut() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.raw {
		_ = c.SetLinger(0)
		_ = c.Close()
	}
	m.raw = nil
}

// join accepts mux streams, as the daemon does, and treats each as a connection.
func (m *fakeLaptop) join(c net.Conn, first *agentv1.RelayHeader, handle func(net.Conn)) {
	status := agentv1.RelayStatus(m.status.Load())
	if status != agentv1.RelayStatus_RELAY_STATUS_OK && status != agentv1.RelayStatus_RELAY_STATUS_REFUSED {
		_ = relay.WriteStatus(c, status)
		return
	}
	if relay.WriteStatus(c, agentv1.RelayStatus_RELAY_STATUS_MULTIPLEXED) != nil {
		return
	}
	_ = c.SetDeadline(time.Time{})
	var handling sync.WaitGroup
	defer handling.Wait()
	streams := mux.New(c, func(header *agentv1.RelayHeader) (net.Conn, agentv1.RelayStatus) {
		header.InterceptUid, header.Token = first.InterceptUid, first.Token
		m.headers <- header
		status := agentv1.RelayStatus(m.status.Load())
		if status != agentv1.RelayStatus_RELAY_STATUS_OK {
			return nil, status
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, agentv1.RelayStatus_RELAY_STATUS_REFUSED
		}
		defer l.Close()
		there, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			return nil, agentv1.RelayStatus_RELAY_STATUS_REFUSED
		}
		here, err := l.Accept()
		if err != nil {
			return nil, agentv1.RelayStatus_RELAY_STATUS_REFUSED
		}
		handling.Go(func() {
			defer here.Close()
			_ = here.SetDeadline(time.Now().Add(patience))
			handle(here)
		})
		return there, status
	})
	stop := context.AfterFunc(m.ctx, func() { _ = streams.Close() })
	defer stop()
	_ = streams.Run()
}

func newCertificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{serverName}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}
