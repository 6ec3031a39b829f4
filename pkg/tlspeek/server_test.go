package tlspeek

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds the waits of the tests.
const patience = 30 * time.Second

func newCertificate(t testing.TB, notAfter time.Time) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: serial, DNSNames: []string{"catalog.shop"}, NotAfter: notAfter}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// listen handles each connection with handle, and returns the address.
func listen(t *testing.T, handle func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
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
				handle(c)
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); running.Wait() })
	return l.Addr().String()
}

func dial(t *testing.T, address string) net.Conn {
	c, err := net.Dial("tcp", address)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// A server speaks TLS if its answer is TLS, even if the handshake fails.
func TestServerSpeaksTLS(t *testing.T) {
	certificate := newCertificate(t, time.Now().Add(time.Hour))
	server := func(change func(*tls.Config)) func(net.Conn) {
		config := &tls.Config{Certificates: []tls.Certificate{certificate}}
		change(config)
		return func(c net.Conn) {
			s := tls.Server(c, config)
			_ = s.Handshake()
			_, _ = io.Copy(io.Discard, s)
		}
	}
	answer := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4<<10))
			_, _ = io.WriteString(c, text)
		}
	}
	for name, c := range map[string]struct {
		handle func(net.Conn)
		want   bool
	}{
		"TLS 1.3": {handle: server(func(*tls.Config) {}), want: true},
		"TLS 1.2": {handle: server(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), want: true},
		"TLS 1.1": {handle: server(func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}), want: true},
		"client certificates": {handle: server(func(c *tls.Config) {
			c.ClientAuth = tls.RequireAnyClientCert
		}), want: true},
		"no certificate at all": {handle: server(func(c *tls.Config) { c.Certificates = nil }), want: true},
		"HTTP":                  {handle: answer("HTTP/1.1 400 Bad Request\r\n\r\n"), want: false},
		"HTTP/2":                {handle: answer("\x00\x00\x12\x04\x00\x00\x00\x00\x00"), want: false},
		"Redis":                 {handle: answer("-ERR unknown command\r\n"), want: false},
		"the connection closes": {handle: func(net.Conn) {}, want: false},
		"silence":               {handle: func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, want: false},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			conn := dial(t, listen(t, c.handle))
			limit := patience
			if name == "silence" {
				limit = time.Second
			}
			_ = conn.SetDeadline(time.Now().Add(limit))
			assert.Equal(t, c.want, ServerSpeaksTLS(ctx, conn))
		})
	}
}
