package tlspeek

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// write puts a certificate where the kubelet would: behind a link that is moved.
func write(t *testing.T, dir string, certificate tls.Certificate) {
	version, err := os.MkdirTemp(dir, "..version")
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: private}} {
		require.NoError(t, os.WriteFile(filepath.Join(version, name), pem.EncodeToMemory(block), 0o600))
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			require.NoError(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
		}
	}
	require.NoError(t, os.Symlink(filepath.Base(version), filepath.Join(dir, "..next")))
	require.NoError(t, os.Rename(filepath.Join(dir, "..next"), filepath.Join(dir, "..data")))
}

func TestCertificateFollowsItsSecret(t *testing.T) {
	dir := t.TempDir()
	c := NewCertificate("web-tls", dir)
	assert.Equal(t, "Secret web-tls cannot be used: it has no tls.crt", c.Problem())
	assert.False(t, c.Refresh())

	first, second, third := newCertificate(t, time.Now().Add(time.Hour)), newCertificate(t, time.Now().Add(time.Hour)), newCertificate(t, time.Now().Add(-time.Hour))
	write(t, dir, first)
	assert.True(t, c.Refresh())
	assert.False(t, c.Refresh(), "nothing is new")
	assert.Empty(t, c.Problem())
	assert.True(t, c.Is(first.Leaf))
	assert.False(t, c.Is(second.Leaf))
	config := c.Config("h2")
	assert.Equal(t, []string{"h2"}, config.NextProtos)
	assert.Empty(t, c.Config("").NextProtos)
	assert.Same(t, config, c.Config("h2"), "or no session could be resumed")

	write(t, dir, second)
	assert.True(t, c.Refresh())
	got, err := c.Get()
	require.NoError(t, err)
	assert.Equal(t, second.Certificate, got.Certificate)
	assert.NotSame(t, config, c.Config("h2"))
	assert.True(t, c.Is(first.Leaf), "an app goes on with what it read when it started")
	assert.True(t, c.Is(second.Leaf))

	write(t, dir, third)
	assert.True(t, c.Refresh())
	assert.Contains(t, c.Problem(), "Secret web-tls cannot be used: its certificate expired at ")
	assert.False(t, c.Is(first.Leaf))
	assert.True(t, c.Is(second.Leaf))

	require.NoError(t, os.Remove(filepath.Join(dir, "..data", "tls.key")))
	assert.True(t, c.Refresh())
	assert.Equal(t, "Secret web-tls cannot be used: it has no tls.key", c.Problem())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "..data", "tls.key"), []byte("not a key"), 0o600))
	assert.True(t, c.Refresh())
	assert.Equal(t, "Secret web-tls cannot be used: its tls.crt and tls.key are not a certificate and its key", c.Problem())
}

func TestTry(t *testing.T) {
	mine, other := newCertificate(t, time.Now().Add(time.Hour)), newCertificate(t, time.Now().Add(time.Hour))
	dir := t.TempDir()
	write(t, dir, mine)
	c := NewCertificate("web-tls", dir)
	server := func(config *tls.Config) func(net.Conn) {
		return func(c net.Conn) {
			s := tls.Server(c, config)
			_ = s.Handshake()
			_, _ = s.Read(make([]byte, 1))
		}
	}
	for name, try := range map[string]struct {
		handle func(net.Conn)
		want   string
	}{
		"its certificate": {server(&tls.Config{Certificates: []tls.Certificate{mine}}), ""},
		"by its name": {server(&tls.Config{GetCertificate: func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if h.ServerName == "catalog.shop" {
				return &mine, nil
			}
			return &other, nil
		}}), ""},
		"another":                    {server(&tls.Config{Certificates: []tls.Certificate{other}}), "the app shows another certificate than that of Secret web-tls"},
		"client certificates":        {server(&tls.Config{Certificates: []tls.Certificate{mine}, ClientAuth: tls.RequestClientCert}), "the app asks for a certificate of its clients, which nobody else can show in their place"},
		"client certificates in 1.2": {server(&tls.Config{Certificates: []tls.Certificate{mine}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12}), "the app asks for a certificate of its clients, which nobody else can show in their place"},
		"no TLS":                     {func(c net.Conn) { _, _ = c.Read(make([]byte, 1000)); _, _ = c.Write([]byte("HTTP/1.1 400")) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, try.want, c.Try(t.Context(), dial(t, listen(t, try.handle))))
		})
	}
}
