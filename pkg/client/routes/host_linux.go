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
	found := hostNetworks{names: map[int]string{}}
	for _, l := range links {
		if name := l.Attrs().Name; name != except {
			found.names[l.Attrs().Index] = name
		}
	}
	if err := found.addAddresses(); err != nil {
		return nil, err
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if err := found.addRoutes(family); err != nil {
			return nil, err
		}
	}
	return found.all, nil
}

// hostNetworks collects the networks of the interfaces in names, which maps indexes to names.
type hostNetworks struct {
	names map[int]string
	all   []HostNetwork
}

// add adds a network unless its interface is not one of names.
func (n *hostNetworks) add(index int, p netip.Prefix, address bool) {
	if name, exists := n.names[index]; exists {
		n.all = append(n.all, HostNetwork{Prefix: p, Interface: name, Address: address})
	}
}

// addAddresses adds the addresses of the interfaces.
func (n *hostNetworks) addAddresses() error {
	addresses, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list the addresses: %w", err)
	}
	for _, a := range addresses {
		p, ok := netipx.FromStdIPNet(a.IPNet)
		if ip, valid := netipx.FromStdIP(a.IP); ok && valid {
			p = netip.PrefixFrom(ip, p.Bits())
		}
		if ok {
			n.add(a.LinkIndex, p, true)
		}
	}
	return nil
}

// addRoutes adds the targets of the routes of one address family, of all tables.
func (n *hostNetworks) addRoutes(family int) error {
	routes, err := netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC},
		netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("list the routes: %w", err)
	}
	for _, r := range routes {
		// The local table repeats the addresses. A route without an interface leads nowhere.
		if r.Table == unix.RT_TABLE_LOCAL || r.Type != unix.RTN_UNICAST || r.Dst == nil {
			continue
		}
		index := r.LinkIndex
		if len(r.MultiPath) > 0 {
			index = r.MultiPath[0].LinkIndex
		}
		if p, ok := netipx.FromStdIPNet(r.Dst); ok {
			n.add(index, p, false)
		}
	}
	return nil
}
