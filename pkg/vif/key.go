package vif

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"fmt"
)

// Key is a WireGuard key, private or public: a Curve25519 scalar or point (https://www.wireguard.com/papers/wireguard.pdf).
type Key [32]byte

// NewPrivateKey makes a private key from the system's random source.
func NewPrivateKey() (Key, error) {
	private, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return Key{}, fmt.Errorf("make a WireGuard key: %w", err)
	}
	return Key(private.Bytes()), nil
}

// ParseKey reads a key in standard base64, as WireGuard's own tools write it.
func ParseKey(s string) (Key, error) {
	raw, err := base64.StdEncoding.DecodeString(s)
	if err != nil || len(raw) != len(Key{}) {
		return Key{}, fmt.Errorf("a WireGuard key is 32 bytes in base64, this is not one")
	}
	return Key(raw), nil
}

// PublicKey is the public key of the private key k.
func (k Key) PublicKey() Key {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil { // only for a wrong length, which the type rules out
		panic(err)
	}
	return Key(private.PublicKey().Bytes())
}

// String is the key in base64. It is the secret itself for a private key: do not log it.
func (k Key) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// hex is the form of WireGuard's configuration protocol.
func (k Key) hex() string { return hex.EncodeToString(k[:]) }
