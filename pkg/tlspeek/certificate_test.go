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

// writeSecret puts a certificate where the kubelet would: behind a link that it moves.
func writeSecret(t *testing.T, dir string, certificate tls.Certificate) {
	version, err := os.MkdirTemp(dir, "..version")
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	require.NoError(t, err)
	for name, block := range map[string]*pem.Block{
		"tls.crt": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]},
		"tls.key": {Type: "PRIVATE KEY", Bytes: private},
	} {
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

	first, second := newCertificate(t, time.Now().Add(time.Hour)), newCertificate(t, time.Now().Add(time.Hour))
	expired := newCertificate(t, time.Now().Add(-time.Hour))
	writeSecret(t, dir, first)
	assert.True(t, c.Refresh())
	assert.False(t, c.Refresh(), "nothing has changed")
	assert.Empty(t, c.Problem())
	assert.True(t, c.Matches(first.Leaf))
	assert.False(t, c.Matches(second.Leaf))
	config := c.Config("h2")
	assert.Equal(t, []string{"h2"}, config.NextProtos)
	assert.Empty(t, c.Config("").NextProtos)
	assert.Same(t, config, c.Config("h2"), "otherwise no client could resume its session")

	writeSecret(t, dir, second)
	assert.True(t, c.Refresh())
	got, err := c.Get()
	require.NoError(t, err)
	assert.Equal(t, second.Certificate, got.Certificate)
	assert.NotSame(t, config, c.Config("h2"))
	assert.True(t, c.Matches(first.Leaf), "the app may still present the certificate that it read when it started")
	assert.True(t, c.Matches(second.Leaf))

	writeSecret(t, dir, expired)
	assert.True(t, c.Refresh())
	assert.Contains(t, c.Problem(), "Secret web-tls cannot be used: its certificate expired at ")
	assert.False(t, c.Matches(first.Leaf))
	assert.True(t, c.Matches(second.Leaf))

	require.NoError(t, os.Remove(filepath.Join(dir, "..data", "tls.key")))
	assert.True(t, c.Refresh())
	assert.Equal(t, "Secret web-tls cannot be used: it has no tls.key", c.Problem())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "..data", "tls.key"), []byte("not a key"), 0o600))
	assert.True(t, c.Refresh())
	assert.Equal(t,
		"Secret web-tls cannot be used: its tls.crt and tls.key are not a certificate and its key", c.Problem())
}

func TestCheckTellsWhyAnAppCannotBeServed(t *testing.T) {
	mine, other := newCertificate(t, time.Now().Add(time.Hour)), newCertificate(t, time.Now().Add(time.Hour))
	dir := t.TempDir()
	writeSecret(t, dir, mine)
	c := NewCertificate("web-tls", dir)
	server := func(config *tls.Config) func(net.Conn) {
		return func(c net.Conn) {
			s := tls.Server(c, config)
			_ = s.Handshake()
			_, _ = s.Read(make([]byte, 1))
		}
	}
	const clientCertificates = "the app requires client certificates, " +
		"which the agent cannot present in the clients' place"
	byName := func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if h.ServerName == "catalog.shop" {
			return &mine, nil
		}
		return &other, nil
	}
	for name, test := range map[string]struct {
		handle func(net.Conn)
		want   string
	}{
		"the same certificate":             {handle: server(&tls.Config{Certificates: []tls.Certificate{mine}})},
		"the same certificate by its name": {handle: server(&tls.Config{GetCertificate: byName})},
		"another certificate": {
			handle: server(&tls.Config{Certificates: []tls.Certificate{other}}),
			want:   "the app presents another certificate than that of Secret web-tls",
		},
		"client certificates": {
			handle: server(&tls.Config{Certificates: []tls.Certificate{mine}, ClientAuth: tls.RequestClientCert}),
			want:   clientCertificates,
		},
		"client certificates in TLS 1.2": {
			handle: server(&tls.Config{
				Certificates: []tls.Certificate{mine},
				ClientAuth:   tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12,
			}),
			want: clientCertificates,
		},
		"no TLS": {handle: func(c net.Conn) {
			_, _ = c.Read(make([]byte, 1000))
			_, _ = c.Write([]byte("HTTP/1.1 400"))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, test.want, c.Check(t.Context(), dial(t, listen(t, test.handle))))
		})
	}
}
