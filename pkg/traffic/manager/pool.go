package manager

import (
	"fmt"
	"net/netip"
	"slices"
)

// pool is the address ranges of the laptops, one per IP family.
type pool struct{ ranges []netip.Prefix }

func parsePool(cidrs ...string) (*pool, error) {
	p := &pool{}
	for _, s := range cidrs {
		if s == "" {
			continue
		}
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("session CIDR: %w", err)
		}
		p.ranges = append(p.ranges, prefix.Masked())
	}
	if len(p.ranges) == 0 {
		return nil, fmt.Errorf("there must be at least one session CIDR")
	}
	return p, nil
}

// own are the manager's addresses: the first of each range.
func (p *pool) own() []netip.Addr {
	var all []netip.Addr
	for _, r := range p.ranges {
		all = append(all, r.Addr().Next())
	}
	return all
}

// contains says whether a session's addresses are what this pool would give: one of each range.
func (p *pool) contains(addresses []netip.Addr) bool {
	if len(addresses) != len(p.ranges) {
		return false
	}
	for i, a := range addresses {
		if !p.ranges[i].Contains(a) {
			return false
		}
	}
	return true
}

// next gives the lowest free address of each range; nil when one is full.
func (p *pool) next(taken []netip.Addr) []netip.Addr {
	var all []netip.Addr
	for _, r := range p.ranges {
		a := r.Addr().Next().Next()
		for slices.Contains(taken, a) {
			a = a.Next()
		}
		// The last address of an IPv4 range is its broadcast address.
		if !r.Contains(a) || (a.Is4() && !r.Contains(a.Next())) {
			return nil
		}
		all = append(all, a)
	}
	return all
}

func parseAddresses(texts []string) []netip.Addr {
	var all []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			all = append(all, a)
		}
	}
	return all
}
