// Package wgkey has WireGuard keys: how they are made, written and used for a proof of identity.
package wgkey

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
)

// Key is a WireGuard key, private or public: a Curve25519 scalar or point
// (https://www.wireguard.com/papers/wireguard.pdf).
type Key [32]byte

// NewPrivate makes a private key from the system's random source.
func NewPrivate() (Key, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make a WireGuard key: %w", err)
	}
	return Key(private.Bytes()), nil
}

// Parse reads a key in standard base64, as WireGuard's own tools write it.
func Parse(s string) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != len(Key{}) {
		return Key{}, errors.New("not a WireGuard key: it must be 32 bytes in base64")
	}
	return Key(raw), nil
}

// Public is the public key of the private key k.
func (k Key) Public() Key {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil { // only for a wrong length, which the type rules out
		panic(err)
	}
	return Key(private.PublicKey().Bytes())
}

// String is the key in base64. It is the secret itself for a private key: do not log it.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Hex is the form of WireGuard's configuration protocol.
func (k Key) Hex() string { return hex.EncodeToString(k[:]) }

// Proof returns bytes that only the holders of two private keys can make: k is the private key of
// one, and peer the public key of the other. Both get the same bytes for a purpose.
func (k Key) Proof(peer Key, purpose string) ([]byte, error) {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return nil, fmt.Errorf("use a WireGuard key: %w", err)
	}
	public, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		return nil, fmt.Errorf("use a WireGuard key: %w", err)
	}
	shared, err := private.ECDH(public)
	if err != nil {
		return nil, errors.New("the peer's WireGuard key is not valid")
	}
	mac := hmac.New(sha256.New, shared)
	mac.Write([]byte("detour " + purpose))
	return mac.Sum(nil), nil
}
