// Package remap shows networks of the cluster at other addresses on the laptop, one to one and
// without any state. That is for a laptop that has a network of its own at the cluster's addresses.
// The package changes packets only; dnsproxy changes DNS answers. Start with Table.
package remap

import (
	"errors"
	"fmt"
	"net/netip"
)

// Pair is a network of the cluster, and the addresses at which the laptop sees it. Both have the
// same size.
type Pair struct{ Real, Seen netip.Prefix }

// String is the pair in a user's notation.
func (p Pair) String() string { return p.Real.String() + "=" + p.Seen.String() }

// Check returns an error for an invalid pair.
func (p Pair) Check() error {
	if p.Real.Addr().Is4() != p.Seen.Addr().Is4() || p.Real.Bits() != p.Seen.Bits() {
		return fmt.Errorf("%s and %s differ in size or IP family", p.Real, p.Seen)
	}
	if p.Real.Masked() != p.Real || p.Seen.Masked() != p.Seen {
		return fmt.Errorf("%s has bits set after its length", p)
	}
	if p.Real.Overlaps(p.Seen) {
		return fmt.Errorf("%s and %s overlap", p.Real, p.Seen)
	}
	return nil
}

// Table is a set of pairs. Their networks do not overlap.
type Table []Pair

// Check returns an error for each fault of a table.
func (t Table) Check() error {
	var all []error
	for i, p := range t {
		all = append(all, p.Check())
		for _, other := range t[:i] {
			if p.overlaps(other) {
				all = append(all, fmt.Errorf("%s and %s overlap", other, p))
			}
		}
	}
	return errors.Join(all...)
}

// overlaps reports whether any network of one pair overlaps one of the other.
func (p Pair) overlaps(o Pair) bool {
	return p.Real.Overlaps(o.Real) || p.Seen.Overlaps(o.Seen) || p.Real.Overlaps(o.Seen) || p.Seen.Overlaps(o.Real)
}

// Seen is the laptop's address for an address of the cluster.
func (t Table) Seen(a netip.Addr) netip.Addr {
	for _, p := range t {
		if p.Real.Contains(a) {
			return move(a, p.Seen)
		}
	}
	return a
}

// Real is the cluster's address for an address that the laptop sees.
func (t Table) Real(a netip.Addr) netip.Addr {
	for _, p := range t {
		if p.Seen.Contains(a) {
			return move(a, p.Real)
		}
	}
	return a
}

// move puts an address at the same place of another network.
func move(a netip.Addr, to netip.Prefix) netip.Addr {
	host, network := a.AsSlice(), to.Addr().AsSlice()
	for i := range host {
		mask := byte(0xff)
		switch bits := to.Bits() - 8*i; {
		case bits <= 0:
			mask = 0
		case bits < 8:
			mask <<= 8 - bits
		}
		host[i] = host[i]&^mask | network[i]&mask
	}
	moved, _ := netip.AddrFromSlice(host)
	return moved
}
