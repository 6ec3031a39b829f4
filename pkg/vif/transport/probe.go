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

// Probes ask whether a path carries messages both ways, without moving WireGuard's session to it, as any message of WireGuard's own
// would. A laptop sends a ping, the hub answers each new one with a pong of the same size. Both are sealed with a key that only the
// two have, made of their WireGuard keys; who does not have it gets no answer. A probe is: type, 3 zero bytes, 8 bytes that name the
// laptop's key, and sealed the number of the ping, 8 bytes that tell the hub's process from the one before, a byte of what the sender takes, and
// padding.
const (
	PingType      = 5
	PongType      = 6
	probeHeader   = 12
	probeBody     = 16
	probeFeatures = probeBody // where that byte is; it may be missing
	probeSeal     = 12 + 16   // nonce and tag
	MinProbe      = probeHeader + probeBody + probeSeal
)

// What the sender of a probe takes, as bits: large packets, spare pieces because it loses some, and a second stream as an express lane. The
// last bit says that the probe is on such a lane.
const FeatureLarge, FeatureParity, FeatureExpress, FeatureOnExpress = 1, 2, 4, 8

func isProbe(m []byte) bool { return len(m) >= 4 && (m[0] == PingType || m[0] == PongType) }

// probeID names a laptop's key in its probes.
type LaptopID [8]byte

func LaptopIDOf(laptop wgkey.Key) LaptopID {
	sum := sha256.Sum256(laptop[:])
	return LaptopID(sum[:8])
}

// prober seals and opens the probes of one laptop.
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

// probe is what one says.
type Probe struct {
	Number, Instance uint64
	Features         byte
}

// seal makes a probe of so many bytes, or of the fewest that do.
func (p *Prober) Seal(kind byte, says Probe, size int) []byte {
	if size < MinProbe {
		size = MinProbe + 1
	}
	m := make([]byte, probeHeader, size)
	m[0] = kind
	copy(m[4:], p.id[:])
	body := make([]byte, cap(m)-probeHeader-probeSeal)
	binary.BigEndian.PutUint64(body, says.Number)
	binary.BigEndian.PutUint64(body[8:], says.Instance)
	if len(body) > probeFeatures {
		body[probeFeatures] = says.Features
	}
	return p.aead.Seal(m, nil, body, m[:probeHeader])
}

// open reads a probe; ok is false when it is not one of this laptop's.
func (p *Prober) Open(kind byte, m []byte) (says Probe, ok bool) {
	if id, is := probeOf(kind, m); !is || id != p.id {
		return Probe{}, false
	}
	body, err := p.aead.Open(nil, nil, m[probeHeader:], m[:probeHeader])
	if err != nil {
		return Probe{}, false
	}
	says = Probe{Number: binary.BigEndian.Uint64(body), Instance: binary.BigEndian.Uint64(body[8:])}
	if len(body) > probeFeatures {
		says.Features = body[probeFeatures]
	}
	return says, true
}

// probeOf says whose probe a message seems to be.
func probeOf(kind byte, m []byte) (id LaptopID, ok bool) {
	if len(m) < MinProbe || len(m) > MaxDatagram || m[0] != kind {
		return id, false
	}
	return LaptopID(m[4:probeHeader]), true
}
