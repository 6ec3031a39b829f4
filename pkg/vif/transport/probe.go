package transport

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"

	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// A probe asks whether a path carries messages both ways. It does not move WireGuard's session to
// that path, as any message of WireGuard's own would. A laptop sends a ping, and the hub answers
// each new ping with a pong of the same size. Both are sealed with a key that only the two have,
// which is made of their WireGuard keys; the hub does not answer anybody else.
//
// A probe is: the type, 3 zero bytes, 8 bytes that name the laptop's key, and then, sealed: the
// number of the ping, 8 bytes that tell the hub's process from the one before, a byte of features,
// and padding.
const (
	PingType      = 5
	PongType      = 6
	probeHeader   = 12
	probeBody     = 16
	probeFeatures = probeBody // the place of the features; older ends leave them out
	probeSeal     = 12 + 16   // nonce and tag
	MinProbe      = probeHeader + probeBody + probeSeal
)

// The features of a probe's sender, as bits. FeatureLarge: it takes large packets. FeatureParity:
// it wants parity fragments, because it loses fragments. FeatureExpress: it knows express streams.
// FeatureOnExpress: this probe is on an express stream.
const FeatureLarge, FeatureParity, FeatureExpress, FeatureOnExpress = 1, 2, 4, 8

func isProbe(m []byte) bool { return len(m) >= 4 && (m[0] == PingType || m[0] == PongType) }

// LaptopID names a laptop's key in its probes.
type LaptopID [8]byte

func LaptopIDOf(laptop wgkey.Key) LaptopID {
	sum := sha256.Sum256(laptop[:])
	return LaptopID(sum[:8])
}

// Prober seals and opens the probes of one laptop. It is safe for several goroutines.
type Prober struct {
	id   LaptopID
	aead cipher.AEAD
}

func NewProber(private, peer, laptop wgkey.Key) (*Prober, error) {
	own, err := ecdh.X25519().NewPrivateKey(private[:])
	if err != nil {
		return nil, fmt.Errorf("make the key of the probes: %w", err)
	}
	other, err := ecdh.X25519().NewPublicKey(peer[:])
	if err != nil {
		return nil, fmt.Errorf("make the key of the probes: %w", err)
	}
	shared, err := own.ECDH(other)
	if err != nil {
		return nil, fmt.Errorf("make the key of the probes: %w", err)
	}
	key, err := hkdf.Key(sha256.New, shared, nil, "detour path probe", 32)
	if err != nil {
		return nil, fmt.Errorf("make the key of the probes: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make the key of the probes: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("make the key of the probes: %w", err)
	}
	return &Prober{id: LaptopIDOf(laptop), aead: aead}, nil
}

// Probe is the contents of a probe.
type Probe struct {
	Number, Instance uint64
	Features         byte
}

// Seal makes a probe of size bytes, or of the smallest size that holds it.
func (p *Prober) Seal(kind byte, contents Probe, size int) []byte {
	if size < MinProbe {
		size = MinProbe + 1
	}
	m := make([]byte, probeHeader, size)
	m[0] = kind
	copy(m[4:], p.id[:])
	body := make([]byte, cap(m)-probeHeader-probeSeal)
	binary.BigEndian.PutUint64(body, contents.Number)
	binary.BigEndian.PutUint64(body[8:], contents.Instance)
	if len(body) > probeFeatures {
		body[probeFeatures] = contents.Features
	}
	return p.aead.Seal(m, nil, body, m[:probeHeader])
}

// Open reads a probe; ok is false when it is not one of this laptop's.
func (p *Prober) Open(kind byte, m []byte) (contents Probe, ok bool) {
	if id, is := probeOf(kind, m); !is || id != p.id {
		return Probe{}, false
	}
	body, err := p.aead.Open(nil, nil, m[probeHeader:], m[:probeHeader])
	if err != nil {
		return Probe{}, false
	}
	contents = Probe{Number: binary.BigEndian.Uint64(body), Instance: binary.BigEndian.Uint64(body[8:])}
	if len(body) > probeFeatures {
		contents.Features = body[probeFeatures]
	}
	return contents, true
}

// probeOf returns the laptop that a message names as its sender, without proof.
func probeOf(kind byte, m []byte) (id LaptopID, ok bool) {
	if len(m) < MinProbe || len(m) > MaxDatagram || m[0] != kind {
		return id, false
	}
	return LaptopID(m[4:probeHeader]), true
}
