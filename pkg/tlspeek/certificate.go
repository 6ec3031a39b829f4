package tlspeek

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Certificate is the certificate and key of a mounted Secret. It follows the Secret when Refresh is
// called. Its methods may be called concurrently.
type Certificate struct {
	Secret string // the name
	dir    string

	// mu guards the fields below.
	mu      sync.Mutex
	err     error // why the certificate cannot be used
	pair    tls.Certificate
	raw     []byte                 // both files
	current [][]byte               // DER of the certificates that the app may present now
	configs map[string]*tls.Config // by the protocol inside TLS
}

// NewCertificate reads tls.crt and tls.key in dir, where the Secret is mounted. Problem tells
// whether that worked.
func NewCertificate(secret, dir string) *Certificate {
	c := &Certificate{Secret: secret, dir: dir}
	c.Refresh()
	return c
}

// Refresh reads the files again, and reports whether anything has changed.
func (c *Certificate) Refresh() (changed bool) {
	pair, raw, err := readPair(c.dir)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		changed = c.err == nil || c.err.Error() != err.Error()
		c.err, c.raw = err, nil
		return changed
	}
	if bytes.Equal(raw, c.raw) {
		return false
	}
	// An app may go on with the certificate that it read when it started.
	der := pair.Certificate[0]
	if n := len(c.current); n == 0 || !bytes.Equal(c.current[n-1], der) {
		c.current = append(c.current[max(0, n-1):], der)
	}
	c.err, c.pair, c.raw, c.configs = nil, pair, raw, map[string]*tls.Config{}
	return true
}

// readPair reads the certificate and its key, and returns them parsed and as they are.
func readPair(dir string) (pair tls.Certificate, raw []byte, err error) {
	// The kubelet changes both files at once by moving this link.
	if real, err := filepath.EvalSymlinks(filepath.Join(dir, "..data")); err == nil {
		dir = real
	}
	public, err := os.ReadFile(filepath.Join(dir, "tls.crt"))
	if err != nil {
		return pair, nil, errors.New("it has no tls.crt")
	}
	private, err := os.ReadFile(filepath.Join(dir, "tls.key"))
	if err != nil {
		return pair, nil, errors.New("it has no tls.key")
	}
	if pair, err = tls.X509KeyPair(public, private); err != nil {
		return pair, nil, errors.New("its tls.crt and tls.key are not a certificate and its key")
	}
	return pair, append(public, private...), nil
}

// Get returns the certificate, or why it cannot be used.
func (c *Certificate) Get() (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if now := time.Now(); now.After(c.pair.Leaf.NotAfter) {
		return nil, fmt.Errorf("its certificate expired at %s", c.pair.Leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	pair := c.pair
	return &pair, nil
}

// Matches reports whether a certificate is this one or the one before it.
func (c *Certificate) Matches(other *x509.Certificate) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, der := range c.current {
		if bytes.Equal(der, other.Raw) {
			return true
		}
	}
	return false
}

// Config returns the configuration of a server with this certificate that speaks one protocol
// inside TLS (ALPN), or any if protocol is empty. It stays the same as long as the certificate
// does, so that clients can resume their sessions.
func (c *Certificate) Config(protocol string) *tls.Config {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.configs[protocol] == nil {
		config := &tls.Config{Certificates: []tls.Certificate{c.pair}, MinVersion: tls.VersionTLS12}
		if protocol != "" {
			config.NextProtos = []string{protocol}
		}
		c.configs[protocol] = config
	}
	return c.configs[protocol]
}

// Problem returns a sentence that says why the certificate cannot be used, or nothing if it can.
func (c *Certificate) Problem() string {
	if _, err := c.Get(); err != nil {
		return fmt.Sprintf("Secret %s cannot be used: %s", c.Secret, err)
	}
	return ""
}

// Check connects to the app at the other end of conn, and returns a sentence that says why the
// agent cannot answer in its place with this certificate. It returns nothing if the agent can, or
// if the app does not speak TLS. It closes conn after a successful handshake only.
func (c *Certificate) Check(ctx context.Context, conn net.Conn) string {
	certificate, err := c.Get()
	if err != nil {
		return c.Problem()
	}
	name := "" // the app may choose its certificate by name
	if names := certificate.Leaf.DNSNames; len(names) > 0 {
		name = strings.Replace(names[0], "*", "any", 1)
	}
	secured, err := Connect(ctx, conn, name, nil, c.Matches)
	switch {
	case err == nil:
		_ = secured.Close()
		return ""
	case errors.Is(err, ErrNotTLS):
		return ""
	case errors.Is(err, ErrOtherCertificate):
		return "the app presents another certificate than that of Secret " + c.Secret
	case errors.Is(err, ErrClientCertificate):
		return "the app requires client certificates, which the agent cannot present in the clients' place"
	default:
		return err.Error()
	}
}
