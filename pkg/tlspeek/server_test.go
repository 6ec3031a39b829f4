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

const patience = 10 * time.Second

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

// listen gives every connection to handle and returns the address.
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

// Only what answers in TLS speaks it, whatever else it answers.
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
	says := func(what string) func(net.Conn) {
		return func(c net.Conn) {
			_, _ = c.Read(make([]byte, 4<<10))
			_, _ = io.WriteString(c, what)
		}
	}
	for name, c := range map[string]struct {
		handle func(net.Conn)
		want   bool
	}{
		"TLS 1.3":               {server(func(*tls.Config) {}), true},
		"TLS 1.2":               {server(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), true},
		"TLS 1.1":               {server(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }), true},
		"client certificates":   {server(func(c *tls.Config) { c.ClientAuth = tls.RequireAnyClientCert }), true},
		"no certificate at all": {server(func(c *tls.Config) { c.Certificates = nil }), true},
		"HTTP":                  {says("HTTP/1.1 400 Bad Request\r\n\r\n"), false},
		"HTTP/2":                {says("\x00\x00\x12\x04\x00\x00\x00\x00\x00"), false},
		"Redis":                 {says("-ERR unknown command\r\n"), false},
		"an end":                {func(net.Conn) {}, false},
		"silence":               {func(c net.Conn) { _, _ = io.Copy(io.Discard, c) }, false},
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
