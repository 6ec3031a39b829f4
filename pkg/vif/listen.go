package vif

import (
	"net"
	"net/netip"
)

// Listen serves laptops on one of the hub's own addresses. WireGuard vouches for a connection's
// remote address: it is the peer's.
func (h *Hub) Listen(at netip.AddrPort) (net.Listener, error) { return h.stack.Listen(at) }
