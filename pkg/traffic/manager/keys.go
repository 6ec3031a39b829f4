package manager

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/vif/wgkey"
	"github.com/detour-dev/detour/pkg/wellknown"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 90 * 24 * time.Hour
)

type tlsConfig = tls.Config

type keys struct {
	wireguard wgkey.Key
	caPEM     []byte
	ca        *x509.Certificate
	caKey     *ecdsa.PrivateKey
}

// loadKeys reads the secret, and makes it the first time.
func loadKeys(ctx context.Context, c client.Client, o Options) (*keys, error) {
	var secret *corev1.Secret
	err := patiently(ctx, o.Log, func(ctx context.Context) (err error) {
		secret, err = keysSecret(ctx, c, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	return parseKeys(secret)
}

// keysSecret is the secret that is there, or else a new one. Two managers that start together agree on what was created first.
func keysSecret(ctx context.Context, c client.Client, o Options) (*corev1.Secret, error) {
	var secret corev1.Secret
	name := client.ObjectKey{Namespace: o.PodNamespace, Name: wellknown.KeysSecret}
	err := c.Get(ctx, name, &secret)
	if apierrors.IsNotFound(err) {
		made, merr := newKeysSecret(name)
		if merr != nil {
			return nil, merr
		}
		if err = c.Create(ctx, made); err == nil {
			return made, nil
		}
		if apierrors.IsAlreadyExists(err) {
			err = c.Get(ctx, name, &secret)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read the secret %s: %w", name, err)
	}
	return &secret, nil
}

func newKeysSecret(name client.ObjectKey) (*corev1.Secret, error) {
	wireguard, err := wgkey.NewPrivate()
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the authority's key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "detour traffic-manager"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(caLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make the authority: %w", err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the authority's key: %w", err)
	}
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: name.Namespace, Name: name.Name},
		Data: map[string][]byte{
			"wireguard.key": []byte(wireguard.String()),
			"ca.crt":        pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			"ca.key":        pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}),
		},
	}, nil
}

func parseKeys(s *corev1.Secret) (*keys, error) {
	broken := fmt.Errorf("the secret %s is damaged: delete it and restart the traffic-manager", wellknown.KeysSecret)
	k := &keys{caPEM: s.Data["ca.crt"]}
	var err error
	if k.wireguard, err = wgkey.Parse(string(s.Data["wireguard.key"])); err != nil {
		return nil, broken
	}
	cert, _ := pem.Decode(s.Data["ca.crt"])
	key, _ := pem.Decode(s.Data["ca.key"])
	if cert == nil || key == nil {
		return nil, broken
	}
	if k.ca, err = x509.ParseCertificate(cert.Bytes); err != nil {
		return nil, broken
	}
	if k.caKey, err = x509.ParseECPrivateKey(key.Bytes); err != nil || !k.caKey.PublicKey.Equal(k.ca.PublicKey) {
		return nil, broken
	}
	return k, nil
}

// certificates gives out the server's certificate and makes a new one in good time.
type certificates struct {
	keys  *keys
	names []string

	mu      sync.Mutex
	current *tls.Certificate
	renewAt time.Time
}

func newCertificates(k *keys, o Options) (*certificates, error) {
	c := &certificates{keys: k, names: []string{wellknown.TrafficManager, wellknown.TrafficManager + "." + o.PodNamespace, o.serverName()}}
	_, err := c.get(nil)
	return c, err
}

// configure is for servers that take a tls.Config.
func (c *certificates) configure(t *tls.Config) {
	t.MinVersion = tls.VersionTLS12
	t.GetCertificate = c.get
}

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
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(leafLife),
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
