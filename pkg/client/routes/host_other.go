//go:build !linux

package routes

import (
	"fmt"
	"net"
	"net/netip"
)

// Host lists what the laptop has a use for: here only the addresses of its interfaces; but for one interface, the VIF.
func Host(except string) ([]HostNetwork, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	var all []HostNetwork
	for _, l := range links {
		addresses, err := l.Addrs()
		if err != nil || l.Name == except {
			continue
		}
		for _, a := range addresses {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				all = append(all, HostNetwork{Prefix: p, Interface: l.Name, Address: true})
			}
		}
	}
	return all, nil
}
