package tundev

import (
	"net/netip"

	"golang.zx2c4.com/wireguard/tun"
)

// HostInterface is what the operating system does for a TUN. Its methods are for one goroutine at a
// time. Closing the TUN removes the addresses and routes too, so there is no Close here.
type HostInterface interface {
	// Configure makes addresses the whole set of the interface's addresses, and brings it up. It
	// may be called again.
	Configure(addresses []netip.Addr, mtu int) error
	// SetRoutes makes routes the whole set of networks behind the interface.
	SetRoutes(routes []netip.Prefix) error
}

// Options describe the interface to make.
type Options struct {
	// Name may contain %d, for which the kernel puts a number.
	Name string
	// MTU is in bytes.
	MTU int
	// Addresses are those that Configure will be called with.
	Addresses []netip.Addr
}

// OpenFunc makes a network interface. The caller closes the device. After an error there is nothing
// to close.
type OpenFunc func(Options) (tun.Device, HostInterface, error)

// LargePackets is implemented by a tun.Device that can pass large packets on as they are.
type LargePackets interface {
	// SetLarge sets whether the other end of the tunnel takes large packets, and checksums that are
	// only begun.
	SetLarge(bool)
}
