package vif

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// Probes ask whether a path carries messages both ways, without moving WireGuard's session to it, as any message of WireGuard's own
// would. A laptop sends a ping, the hub answers each new one with a pong of the same size. Both are sealed with a key that only the
// two have, made of their WireGuard keys; who does not have it gets no answer. A probe is: type, 3 zero bytes, 8 bytes that name the
// laptop's key, and sealed the number of the ping, 8 bytes that tell the hub's process from the one before, a byte of what the sender takes, and
// padding.
const (
	pingType    = 5
	pongType    = 6
	probeHeader = 12
	probeBody   = 16
	probeTakes  = probeBody // where that byte is; it may be missing
	probeSeal   = 12 + 16   // nonce and tag
	minProbe    = probeHeader + probeBody + probeSeal
)

// What the sender of a probe takes, as bits: large packets, spare pieces because it loses some, and a second stream as an express lane. The
// last bit says that the probe is on such a lane.
const takesLarge, takesSpare, takesLanes, onLane = 1, 2, 4, 8

func isProbe(m []byte) bool { return len(m) >= 4 && (m[0] == pingType || m[0] == pongType) }

// probeID names a laptop's key in its probes.
type probeID [8]byte

func probeIDOf(laptop Key) probeID {
	sum := sha256.Sum256(laptop[:])
	return probeID(sum[:8])
}

// prober seals and opens the probes of one laptop.
type prober struct {
	id   probeID
	aead cipher.AEAD
}

func newProber(private, peer, laptop Key) (*prober, error) {
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
	return &prober{id: probeIDOf(laptop), aead: aead}, nil
}

// probe is what one says.
type probe struct {
	number, instance uint64
	takes            byte
}

// seal makes a probe of so many bytes, or of the fewest that do.
func (p *prober) seal(kind byte, says probe, size int) []byte {
	if size < minProbe {
		size = minProbe + 1
	}
	m := make([]byte, probeHeader, size)
	m[0] = kind
	copy(m[4:], p.id[:])
	body := make([]byte, cap(m)-probeHeader-probeSeal)
	binary.BigEndian.PutUint64(body, says.number)
	binary.BigEndian.PutUint64(body[8:], says.instance)
	if len(body) > probeTakes {
		body[probeTakes] = says.takes
	}
	return p.aead.Seal(m, nil, body, m[:probeHeader])
}

// open reads a probe; ok is false when it is not one of this laptop's.
func (p *prober) open(kind byte, m []byte) (says probe, ok bool) {
	if id, is := probeOf(kind, m); !is || id != p.id {
		return probe{}, false
	}
	body, err := p.aead.Open(nil, nil, m[probeHeader:], m[:probeHeader])
	if err != nil {
		return probe{}, false
	}
	says = probe{number: binary.BigEndian.Uint64(body), instance: binary.BigEndian.Uint64(body[8:])}
	if len(body) > probeTakes {
		says.takes = body[probeTakes]
	}
	return says, true
}

// probeOf says whose probe a message seems to be.
func probeOf(kind byte, m []byte) (id probeID, ok bool) {
	if len(m) < minProbe || len(m) > maxDatagram || m[0] != kind {
		return id, false
	}
	return probeID(m[4:probeHeader]), true
}
