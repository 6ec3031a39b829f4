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

// Certificate is the certificate and key of a Secret that is mounted, and changes with it.
type Certificate struct {
	Secret string // its name
	dir    string

	mu       sync.Mutex
	err      error
	pair     tls.Certificate
	raw      []byte   // both files
	previous [][]byte // DER of the certificates that the app may show now
	configs  map[string]*tls.Config
}

// NewCertificate reads tls.crt and tls.key below dir.
func NewCertificate(secret, dir string) *Certificate {
	c := &Certificate{Secret: secret, dir: dir}
	c.Refresh()
	return c
}

// Refresh reads the files again and says whether anything is different.
func (c *Certificate) Refresh() (changed bool) {
	pair, raw, err := read(c.dir)
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
	// An app may go on for a while with what it read when it started.
	der := pair.Certificate[0]
	if n := len(c.previous); n == 0 || !bytes.Equal(c.previous[n-1], der) {
		c.previous = append(c.previous[max(0, n-1):], der)
	}
	c.err, c.pair, c.raw, c.configs = nil, pair, raw, map[string]*tls.Config{}
	return true
}

func read(dir string) (pair tls.Certificate, raw []byte, err error) {
	// The kubelet changes both files at once, by moving this link.
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

// Get is the certificate, or why it cannot be used.
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

// Is says whether a certificate is this one, or the one before it.
func (c *Certificate) Is(other *x509.Certificate) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, der := range c.previous {
		if bytes.Equal(der, other.Raw) {
			return true
		}
	}
	return false
}

// Config is that of a server with this certificate, which speaks one protocol inside; none when it is empty. It stays the same as long as the
// certificate does, so that clients can resume.
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

// Problem says in words why the certificate cannot be used; nothing when it can.
func (c *Certificate) Problem() string {
	if _, err := c.Get(); err != nil {
		return fmt.Sprintf("Secret %s cannot be used: %s", c.Secret, err)
	}
	return ""
}

// Try says in words why an app at the other end of conn cannot be served with this certificate in front of it; nothing when it can, or
// when it does not speak TLS.
func (c *Certificate) Try(ctx context.Context, conn net.Conn) string {
	certificate, err := c.Get()
	if err != nil {
		return c.Problem()
	}
	name := "" // an app may have several
	if names := certificate.Leaf.DNSNames; len(names) > 0 {
		name = strings.Replace(names[0], "*", "any", 1)
	}
	up, err := Connect(ctx, conn, name, nil, c.Is)
	switch {
	case err == nil:
		_ = up.Close()
		return ""
	case errors.Is(err, ErrNotTLS):
		return ""
	case errors.Is(err, ErrOtherCertificate):
		return "the app shows another certificate than that of Secret " + c.Secret
	case errors.Is(err, ErrClientCertificate):
		return "the app asks for a certificate of its clients, which nobody else can show in their place"
	default:
		return err.Error()
	}
}
