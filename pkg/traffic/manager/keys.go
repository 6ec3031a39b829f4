package manager

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/detour-dev/detour/pkg/traffic/manager/retry"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
	"github.com/detour-dev/detour/pkg/wellknown"
)

// caLife is how long the certificate authority is valid. It is never renewed: agents that run have
// it in their pods' spec.
const caLife = 10 * 365 * 24 * time.Hour

// keys are what makes a new pod the same traffic-manager.
type keys struct {
	wireguard wgkey.Key
	caPEM     []byte // the certificate authority that agents and the API server trust
	ca        *x509.Certificate
	caKey     *ecdsa.PrivateKey
}

// loadKeys reads the manager's Secret, and creates it the first time.
func loadKeys(ctx context.Context, c client.Client, o Options) (*keys, error) {
	var secret *corev1.Secret
	err := retry.Do(ctx, o.Log, func(ctx context.Context) (err error) {
		secret, err = keysSecret(ctx, c, o)
		return err
	})
	if err != nil {
		return nil, err
	}
	return parseKeys(secret)
}

// keysSecret returns the Secret of the keys, which it creates if there is none. Two managers that
// start together agree on the Secret that was created first.
func keysSecret(ctx context.Context, c client.Client, o Options) (*corev1.Secret, error) {
	var secret corev1.Secret
	name := client.ObjectKey{Namespace: o.PodNamespace, Name: wellknown.KeysSecret}
	err := c.Get(ctx, name, &secret)
	if apierrors.IsNotFound(err) {
		created, createErr := newKeysSecret(name)
		if createErr != nil {
			return nil, createErr
		}
		if err = c.Create(ctx, created); err == nil {
			return created, nil
		}
		if apierrors.IsAlreadyExists(err) {
			err = c.Get(ctx, name, &secret)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret %s: %w", name, err)
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
		NotBefore: time.Now().Add(-clockSkew), NotAfter: time.Now().Add(caLife),
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
	broken := fmt.Errorf("secret %s is damaged: delete it and restart the traffic-manager", wellknown.KeysSecret)
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
