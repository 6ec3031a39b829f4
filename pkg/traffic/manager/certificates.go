package manager

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"sync"
	"time"

	"github.com/detour-dev/detour/pkg/wellknown"
)

const (
	// leafLife is how long a server certificate is valid. It is replaced after two thirds of that.
	leafLife = 90 * 24 * time.Hour
	// clockSkew is how far a node's clock may be behind the manager's.
	clockSkew = time.Hour
)

// certificates issues the manager's server certificate and replaces it in time.
type certificates struct {
	keys  *keys
	names []string

	// mu guards the fields below.
	mu      sync.Mutex
	current *tls.Certificate
	renewAt time.Time
}

func newCertificates(k *keys, o Options) (*certificates, error) {
	c := &certificates{keys: k, names: []string{
		wellknown.TrafficManager, wellknown.TrafficManager + "." + o.PodNamespace, o.serverName(),
	}}
	_, err := c.get(nil)
	return c, err
}

// config returns a configuration for a server.
func (c *certificates) config() *tls.Config {
	t := &tls.Config{}
	c.configure(t)
	return t
}

// configure makes a server use the certificates.
func (c *certificates) configure(t *tls.Config) {
	t.MinVersion = tls.VersionTLS12
	t.GetCertificate = c.get
}

// get implements tls.Config.GetCertificate.
func (c *certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && time.Now().Before(c.renewAt) {
		return c.current, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the server's key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: c.names[0]}, DNSNames: c.names,
		NotBefore: now.Add(-clockSkew), NotAfter: now.Add(leafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, c.keys.ca, &key.PublicKey, c.keys.caKey)
	if err != nil {
		return nil, fmt.Errorf("make the server's certificate: %w", err)
	}
	c.current = &tls.Certificate{Certificate: [][]byte{der, c.keys.ca.Raw}, PrivateKey: key}
	c.renewAt = now.Add(leafLife * 2 / 3)
	return c.current, nil
}
