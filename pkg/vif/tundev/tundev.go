package tundev

import (
	"net/netip"

	"golang.zx2c4.com/wireguard/tun"
)

// hostInterface is what the operating system does for a TUN. Its methods are for one goroutine at a time. To close the
// TUN removes its addresses and routes too, so there is no Close here.
type HostInterface interface {
	// Configure makes addresses all that the interface has, and brings it up. It may be called again.
	Configure(addresses []netip.Addr, mtu int) error
	// SetRoutes makes routes the whole set of networks behind the interface.
	SetRoutes(routes []netip.Prefix) error
}

// tunOptions describe the interface to make.
type Options struct {
	// Name may have a %d, for which the kernel puts a number.
	Name string
	// MTU is in bytes.
	MTU int
	// Addresses are those that Configure will be called with.
	Addresses []netip.Addr
}

// tundevOpenFunc makes a network interface. The caller closes the device. After an error there is nothing to close.
type OpenFunc func(Options) (tun.Device, HostInterface, error)

// largePackets is implemented by a tun.Device that can hand on large packets as they are.
type LargePackets interface {
	// SetLarge says whether the other end of the tunnel takes large packets, and checksums that are only begun.
	SetLarge(bool)
}
