package tundev

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// linuxInterface configures the TUN over netlink.
type linuxInterface struct {
	link netlink.Link
}

// Open makes an interface in the network of this process. The caller closes the device. After an
// error there is nothing to close.
func Open(o Options) (tun.Device, HostInterface, error) {
	device, host, err := Create(o.Name, o.MTU)
	if errors.Is(err, os.ErrPermission) {
		return nil, nil, fmt.Errorf("%w: a network interface needs root or CAP_NET_ADMIN", err)
	}
	if err != nil {
		return nil, nil, err
	}
	offload, err := NewOffload(device, o.MTU)
	if err != nil {
		_ = device.Close()
		return nil, nil, err
	}
	return offload, host, nil
}

func Create(name string, mtu int) (tun.Device, HostInterface, error) {
	device, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return nil, nil, fmt.Errorf("make the network interface: %w", err)
	}
	actual, err := device.Name()
	if err != nil {
		_ = device.Close()
		return nil, nil, fmt.Errorf("make the network interface: %w", err)
	}
	link, err := netlink.LinkByName(actual)
	if err != nil {
		_ = device.Close()
		return nil, nil, fmt.Errorf("find the network interface %s: %w", actual, err)
	}
	return device, &linuxInterface{link: link}, nil
}

func (l *linuxInterface) Configure(addresses []netip.Addr, mtu int) error {
	if err := netlink.LinkSetMTU(l.link, mtu); err != nil {
		return fmt.Errorf("set the MTU of %s: %w", l.link.Attrs().Name, err)
	}
	_ = netlink.LinkSetGSOMaxSize(l.link, packet.KernelLarge) // without it, larger packets are cut
	for _, a := range addresses {
		// Duplicate address detection would delay the first packet by seconds, and no other host is
		// on this link.
		address := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrReplace(l.link, address); err != nil {
			if a.Is6() {
				continue // IPv6 is off on this machine, and IPv4 is enough
			}
			return fmt.Errorf("give %s the address %s: %w", l.link.Attrs().Name, a, err)
		}
	}
	if err := netlink.LinkSetUp(l.link); err != nil {
		return fmt.Errorf("bring %s up: %w", l.link.Attrs().Name, err)
	}
	return l.removeOthers(addresses)
}

// removeOthers removes addresses that the interface had for an earlier session.
func (l *linuxInterface) removeOthers(addresses []netip.Addr) error {
	present, err := netlink.AddrList(l.link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", l.link.Attrs().Name, err)
	}
	for _, p := range present {
		a, ok := netip.AddrFromSlice(p.IP)
		if a = a.Unmap(); !ok || a.IsLinkLocalUnicast() || slices.Contains(addresses, a) {
			continue
		}
		if err := netlink.AddrDel(l.link, &p); err != nil {
			return fmt.Errorf("remove the address %s from %s: %w", a, l.link.Attrs().Name, err)
		}
	}
	return nil
}

func (l *linuxInterface) SetRoutes(routes []netip.Prefix) error {
	missing := map[string]netip.Prefix{}
	for _, r := range routes {
		missing[r.Masked().String()] = r.Masked()
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		present, err := netlink.RouteList(l.link, family)
		if err != nil {
			return fmt.Errorf("list the routes of %s: %w", l.link.Attrs().Name, err)
		}
		for _, r := range present {
			if r.Dst == nil || r.Protocol == unix.RTPROT_KERNEL {
				continue
			}
			if _, ok := missing[r.Dst.String()]; ok {
				delete(missing, r.Dst.String())
				continue
			}
			if err := netlink.RouteDel(&r); err != nil {
				return fmt.Errorf("remove the route %s: %w", r.Dst, err)
			}
		}
	}
	for _, r := range missing {
		route := &netlink.Route{
			LinkIndex: l.link.Attrs().Index,
			Dst:       ipNet(r),
			Scope:     netlink.SCOPE_LINK,
			Protocol:  unix.RTPROT_STATIC,
		}
		if err := netlink.RouteAdd(route); err != nil {
			if r.Addr().Is6() {
				continue
			}
			return fmt.Errorf("route %s to %s: %w", r, l.link.Attrs().Name, err)
		}
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
