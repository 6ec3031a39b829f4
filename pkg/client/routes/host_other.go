//go:build !linux

package routes

import (
	"fmt"
	"net"
	"net/netip"
)

// Host returns the networks that the laptop uses. On this system these are only the addresses of
// its interfaces. It leaves out one interface, the VIF.
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
