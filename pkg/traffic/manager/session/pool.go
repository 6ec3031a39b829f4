package session

import (
	"fmt"
	"net/netip"
	"slices"
)

// Pool is the laptops' address ranges, at most one per IP family.
type Pool struct{ ranges []netip.Prefix }

// ParsePool returns the pool of some CIDRs, of which empty ones do not count.
func ParsePool(cidrs ...string) (*Pool, error) {
	p := &Pool{}
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
		return nil, fmt.Errorf("no session CIDR is given: set --session-cidr or --session-cidr6")
	}
	return p, nil
}

// ManagerAddresses returns the manager's own addresses: the first of each range.
func (p *Pool) ManagerAddresses() []netip.Addr {
	var all []netip.Addr
	for _, r := range p.ranges {
		all = append(all, r.Addr().Next())
	}
	return all
}

// contains reports whether a session's addresses are what this pool would give: one of each range.
func (p *Pool) contains(addresses []netip.Addr) bool {
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

// next returns the lowest free address of each range, or nil if one of them is full.
func (p *Pool) next(taken []netip.Addr) []netip.Addr {
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

// ParseAddresses returns those of the texts that are addresses.
func ParseAddresses(texts []string) []netip.Addr {
	var all []netip.Addr
	for _, t := range texts {
		if a, err := netip.ParseAddr(t); err == nil {
			all = append(all, a)
		}
	}
	return all
}
