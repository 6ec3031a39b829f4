package manager

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/netx"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	"github.com/detour-dev/detour/pkg/wellknown"
)

var options = Options{PodNamespace: "detour-system"}

func newKeys(t *testing.T) *keys {
	secret, err := newKeysSecret(client.ObjectKey{Namespace: "detour-system", Name: wellknown.KeysSecret})
	require.NoError(t, err)
	k, err := parseKeys(secret)
	require.NoError(t, err)
	return k
}

// A manager that reads the keys of an earlier one is the same manager.
func TestKeysSurvive(t *testing.T) {
	name := client.ObjectKey{Namespace: "detour-system", Name: wellknown.KeysSecret}
	secret, err := newKeysSecret(name)
	require.NoError(t, err)
	assert.Equal(t, name, client.ObjectKeyFromObject(secret))
	one, err := parseKeys(secret)
	require.NoError(t, err)
	two, err := parseKeys(secret)
	require.NoError(t, err)
	assert.Equal(t, one.wireguard, two.wireguard)
	assert.NotEqual(t, wgkey.Key{}, one.wireguard)
	assert.True(t, one.ca.Equal(two.ca))
	assert.True(t, one.caKey.Equal(two.caKey))

	assert.True(t, one.ca.IsCA)
	assert.True(t, one.caKey.PublicKey.Equal(one.ca.PublicKey), "the key is the authority's")
	assert.Greater(t, time.Until(one.ca.NotAfter), 9*365*24*time.Hour)
	assert.True(t, one.ca.NotBefore.Before(time.Now().Add(-time.Minute)), "a node's clock may be behind")

	other := newKeys(t)
	assert.NotEqual(t, one.wireguard, other.wireguard)
	assert.False(t, one.caKey.Equal(other.caKey))
}

// Whatever part of it is damaged, the error names the Secret to delete.
func TestDamagedKeys(t *testing.T) {
	for part, values := range map[string][]string{
		"wireguard.key": {"", "not base64!", "c2hvcnQ="},
		"ca.crt":        {"", "not PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
		"ca.key":        {"", "not PEM", "-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n"},
	} {
		for _, value := range values {
			t.Run(part+" "+value, func(t *testing.T) {
				secret, err := newKeysSecret(client.ObjectKey{})
				require.NoError(t, err)
				secret.Data[part] = []byte(value)
				_, err = parseKeys(secret)
				require.EqualError(t, err,
					"secret traffic-manager-keys is damaged: delete it and restart the traffic-manager")
			})
		}
	}
	t.Run("a key that is not the certificate's", func(t *testing.T) {
		secret, err := newKeysSecret(client.ObjectKey{})
		require.NoError(t, err)
		other, err := newKeysSecret(client.ObjectKey{})
		require.NoError(t, err)
		secret.Data["ca.key"] = other.Data["ca.key"]
		_, err = parseKeys(secret)
		require.ErrorContains(t, err, "is damaged")
	})
}

// Agents and the API server trust the manager by its authority alone, under each of its names.
func TestCertificatesAreTrusted(t *testing.T) {
	k := newKeys(t)
	certs, err := newCertificates(k, options)
	require.NoError(t, err)
	server := &tls.Config{}
	certs.configure(server)
	l, err := tls.Listen("tcp", "127.0.0.1:0", server)
	require.NoError(t, err)
	defer l.Close()
	go func() { // nobody waits for it: it ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			_ = c.Close()
		}
	}()
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(k.caPEM))
	dial := func(roots *x509.CertPool, name string, version uint16) error {
		c, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: name, MaxVersion: version})
		if err == nil {
			_ = c.Close()
		}
		return err
	}
	for _, name := range []string{
		"traffic-manager", "traffic-manager.detour-system", "traffic-manager.detour-system.svc",
	} {
		require.NoError(t, dial(roots, name, tls.VersionTLS13), name)
	}
	var wrongName x509.HostnameError
	require.ErrorAs(t, dial(roots, "traffic-manager.elsewhere.svc", tls.VersionTLS13), &wrongName)

	elsewhere := x509.NewCertPool()
	elsewhere.AddCert(newKeys(t).ca)
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, dial(elsewhere, "traffic-manager", tls.VersionTLS13), &unknown)
	require.Error(t, dial(roots, "traffic-manager", tls.VersionTLS11), "old TLS is refused")
}

// A certificate is replaced after two thirds of its life, while it is still valid.
func TestCertificatesAreRenewed(t *testing.T) {
	certs, err := newCertificates(newKeys(t), options)
	require.NoError(t, err)
	first, err := certs.get(nil)
	require.NoError(t, err)
	again, err := certs.get(nil)
	require.NoError(t, err)
	assert.Same(t, first, again)

	leaf, err := x509.ParseCertificate(first.Certificate[0])
	require.NoError(t, err)
	assert.Less(t, certs.renewAt, leaf.NotAfter.Add(-leafLife/4), "a server that uses the old one has time left")
	certs.renewAt = time.Now().Add(-time.Second)
	renewed, err := certs.get(nil)
	require.NoError(t, err)
	assert.NotSame(t, first, renewed)
	assert.True(t, certs.renewAt.After(time.Now().Add(leafLife/2)))
	newLeaf, err := x509.ParseCertificate(renewed.Certificate[0])
	require.NoError(t, err)
	assert.NotEqual(t, leaf.SerialNumber, newLeaf.SerialNumber)
}

// The bytes that an HTTP server read ahead of an upgrade belong to the tunnel and come first.
func TestReadAheadOfAnUpgrade(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	near, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	far, err := l.Accept()
	require.NoError(t, err)
	defer far.Close()

	_, err = io.WriteString(near, "head ahead ")
	require.NoError(t, err)
	buffered := bufio.NewReader(far)
	_, err = buffered.Peek(len("head ahead "))
	require.NoError(t, err)
	head := make([]byte, 5)
	_, err = io.ReadFull(buffered, head)
	require.NoError(t, err)
	_, err = io.WriteString(near, "and after")
	require.NoError(t, err)
	require.NoError(t, near.Close())
	rest, err := io.ReadAll(netx.Unbuffered(far, buffered))
	require.NoError(t, err)
	assert.Equal(t, "ahead and after", string(rest))
}
