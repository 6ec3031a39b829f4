package routes

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"go4.org/netipx"
	"golang.org/x/sys/unix"
)

// Host returns the networks that the laptop uses: the addresses of its interfaces, and the targets
// of the routes of all tables. It leaves out one interface, the VIF.
func Host(except string) ([]HostNetwork, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	var all []HostNetwork
	add := func(index int, p netip.Prefix, ok, address bool) {
		if name, exists := names[index]; ok && exists && name != except {
			all = append(all, HostNetwork{Prefix: p, Interface: name, Address: address})
		}
	}
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list the addresses: %w", err)
	}
	for _, a := range addresses {
		p, ok := netipx.FromStdIPNet(a.IPNet)
		if ip, valid := netipx.FromStdIP(a.IP); ok && valid {
			p = netip.PrefixFrom(ip, p.Bits())
		}
		add(a.LinkIndex, p, ok, true)
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			// The local table repeats the addresses. A route without an interface leads nowhere.
			if r.Table == unix.RT_TABLE_LOCAL || r.Type != unix.RTN_UNICAST || r.Dst == nil {
				continue
			}
			p, ok := netipx.FromStdIPNet(r.Dst)
			index := r.LinkIndex
			if len(r.MultiPath) > 0 {
				index = r.MultiPath[0].LinkIndex
			}
			add(index, p, ok, false)
		}
	}
	return all, nil
}
