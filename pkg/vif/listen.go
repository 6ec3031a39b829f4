package vif

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
)

// Listen serves laptops on one of the hub's own addresses. WireGuard vouches for a connection's remote address: it is the peer's.
func (h *Hub) Listen(at netip.AddrPort) (net.Listener, error) {
	l, err := gonet.ListenTCP(h.tun.stack, tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(at.Addr().AsSlice()), Port: at.Port()}, networkOf(at.Addr()))
	if err != nil {
		return nil, fmt.Errorf("listen for laptops at %s: %w", at, err)
	}
	return l, nil
}

// Proof is what only the holders of the two private keys can make, one from each side: k is private, of is the other's public key.
func (k Key) Proof(of Key, purpose string) ([]byte, error) {
	private, err := ecdh.X25519().NewPrivateKey(k[:])
	if err != nil {
		return nil, fmt.Errorf("use a WireGuard key: %w", err)
	}
	public, err := ecdh.X25519().NewPublicKey(of[:])
	if err != nil {
		return nil, fmt.Errorf("use a WireGuard key: %w", err)
	}
	shared, err := private.ECDH(public)
	if err != nil {
		return nil, errors.New("the other's WireGuard key is none")
	}
	mac := hmac.New(sha256.New, shared)
	mac.Write([]byte("detour " + purpose))
	return mac.Sum(nil), nil
}
