package kit

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// newCertificate writes tls.crt and tls.key for the service web into a directory.
func newCertificate(t *testing.T) (directory string, roots *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: serial,
		DNSNames:     []string{"web.shop"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
		IsCA:         true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	directory, roots = t.TempDir(), x509.NewCertPool()
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	require.True(t, roots.AppendCertsFromPEM(public))
	require.NoError(t, os.WriteFile(filepath.Join(directory, "tls.crt"), public, 0o600))
	secret := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	require.NoError(t, os.WriteFile(filepath.Join(directory, "tls.key"), secret, 0o600))
	return directory, roots
}

// DeployWeb deploys the service web, whose pods speak TLS with a new certificate. It returns the
// directory of the certificate and the pool that trusts it.
func DeployWeb(t *testing.T) (directory string, roots *x509.CertPool) {
	t.Helper()
	directory, roots = newCertificate(t)
	Kubectl(t, "-n", "shop", "create", "secret", "tls", "web-tls",
		"--cert", filepath.Join(directory, "tls.crt"), "--key", filepath.Join(directory, "tls.key"))
	t.Cleanup(func() { Kubectl(t, "-n", "shop", "delete", "secret", "web-tls") })
	Kubectl(t, "apply", "-f", Testdata("secure.yaml"))
	t.Cleanup(func() { Kubectl(t, "delete", "-f", Testdata("secure.yaml")) })
	WaitForRollout(t, "shop", "deployment/web")
	return directory, roots
}

// TLSClients returns clients of both versions of HTTP over TLS that trust roots.
func TLSClients(t *testing.T, roots *x509.CertPool) map[string]*http.Client {
	t.Helper()
	all := map[string]*http.Client{}
	for _, version := range []string{"HTTP/1.1", "HTTP/2.0"} {
		protocols := new(http.Protocols)
		protocols.SetHTTP1(version == "HTTP/1.1")
		protocols.SetHTTP2(version == "HTTP/2.0")
		client := &http.Client{Transport: &http.Transport{
			Protocols:       protocols,
			TLSClientConfig: &tls.Config{RootCAs: roots},
		}}
		t.Cleanup(client.CloseIdleConnections)
		all[version] = client
	}
	return all
}

// AskWeb sends a request with a developer's mark to the service web and returns the page.
func AskWeb(client *http.Client, mark string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), RequestLimit)
	defer cancel()
	body := bytes.NewReader([]byte("body"))
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://web.shop/", body)
	if err != nil {
		return "", err
	}
	r.Header.Set("x-dev", mark)
	response, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(response.Body)
	return string(page), err
}
