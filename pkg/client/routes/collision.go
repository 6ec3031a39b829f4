package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"

	"github.com/detour-dev/detour/pkg/vif/remap"
)

// HostNetwork is a network that the laptop uses.
type HostNetwork struct {
	Prefix    netip.Prefix
	Interface string
	Address   bool // the interface has an address in it; otherwise a route leads there
}

func (h HostNetwork) String() string {
	if h.Address {
		return fmt.Sprintf("interface %s has the address %s", h.Interface, h.Prefix)
	}
	return fmt.Sprintf("interface %s has the route %s", h.Interface, h.Prefix)
}

// wide reports whether a route stands for "everything else": the default route, and the routes that
// VPNs set in its place. The largest private networks, 10.0.0.0/8 and fc00::/7, do not.
func wide(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 7
}

// usersOf returns the laptop's networks that overlap a part. It leaves out the route that the
// system sets for an address of an interface.
func usersOf(part *netipx.IPSet, host []HostNetwork) (all []HostNetwork) {
	for _, h := range host {
		same := func(o HostNetwork) bool { return o.Interface == h.Interface && o.Prefix.Masked() == h.Prefix.Masked() }
		if !wide(h.Prefix) && part.OverlapsPrefix(h.Prefix.Masked()) && !slices.ContainsFunc(all, same) {
			all = append(all, h)
		}
	}
	return all
}

// Collision is a network of the cluster at addresses that the laptop uses.
type Collision struct {
	Subnet netip.Prefix
	Host   HostNetwork
}

// overlap returns the network that both use.
func (c Collision) overlap() netip.Prefix {
	if c.Host.Prefix.Bits() > c.Subnet.Bits() {
		return c.Host.Prefix.Masked()
	}
	return c.Subnet
}

// Explain returns an error that names all collisions and says what to do, in one sentence. all must
// not be empty.
func Explain(all []Collision) error {
	var what, never, also []string
	for _, c := range all {
		what = append(what, fmt.Sprintf("%s (%s)", c.Subnet, c.Host))
		never = append(never, "--never-proxy "+c.overlap().String())
		if flag := "--also-proxy " + c.Subnet.String(); !slices.Contains(also, flag) {
			also = append(also, flag)
		}
	}
	text := "the cluster's network " + what[0] + " is"
	if len(what) > 1 {
		text = "the cluster's networks " + strings.Join(what, " and ") + " are"
	}
	return errors.New(text + " in use on this laptop: map the cluster's to other addresses with --map-subnet auto, " +
		"keep the laptop's with " + strings.Join(never, " ") +
		", use the cluster's instead with " + strings.Join(also, " ") +
		", or connect without root (--rootless), where the laptop's networks do not matter")
}

// pools are the ranges from which detour takes addresses for mapped networks, in this order: the
// range for tests between networks, next to the laptops' own addresses (RFC 2544), the range of
// carriers (RFC 6598), and the private ranges (RFC 1918). For IPv6 it is a part of the private
// addresses (RFC 4193).
var pools = []netip.Prefix{
	netip.MustParsePrefix("198.19.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("172.16.0.0/12"),
	netip.MustParsePrefix("10.0.0.0/8"),
	netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("fd64:6574::/32"),
}

// place chooses the addresses of the i-th mapped network, or checks those that the user chose.
func (w *Overrides) place(i int, c Cluster, host []HostNetwork) error {
	pair := &w.Map[i]
	if pair.Seen.IsValid() {
		return w.checkPlace(*pair, c, host)
	}
	used, err := w.usedSet(c, host)
	if err != nil {
		return err
	}
	for _, pool := range pools {
		if pool.Addr().Is4() != pair.Real.Addr().Is4() || pool.Bits() > pair.Real.Bits() {
			continue
		}
		for at := pool.Addr(); pool.Contains(at); {
			candidate := netip.PrefixFrom(at, pair.Real.Bits())
			if !used.OverlapsPrefix(candidate) {
				pair.Seen = candidate
				return nil
			}
			at = netipx.PrefixLastIP(candidate).Next()
		}
	}
	return fmt.Errorf("this laptop has no free range for the cluster's network %s: name one with --map-subnet %s=CIDR",
		pair.Real, pair.Real)
}

// checkPlace refuses addresses that the laptop or the cluster uses.
func (w *Overrides) checkPlace(pair remap.Pair, c Cluster, host []HostNetwork) error {
	if users := usersOf(only(pair.Seen), host); len(users) > 0 {
		return fmt.Errorf("--map-subnet %s: %s is in use on this laptop itself (%s): "+
			"choose another one, or --map-subnet %s=auto",
			pair, pair.Seen, users[0], pair.Real)
	}
	for _, p := range slices.Concat(c.Subnets, w.Also) {
		if pair.Seen.Overlaps(p) {
			return fmt.Errorf("--map-subnet %s: %s is a network of the cluster too: "+
				"choose another one, or --map-subnet %s=auto",
				pair, p, pair.Real)
		}
	}
	return nil
}

// usedSet returns the addresses that no mapped network may get.
func (w *Overrides) usedSet(c Cluster, host []HostNetwork) (*netipx.IPSet, error) {
	var used netipx.IPSetBuilder
	for _, h := range host {
		if !wide(h.Prefix) {
			used.AddPrefix(h.Prefix.Masked())
		}
	}
	for _, p := range slices.Concat(c.Subnets, w.Also) {
		used.AddPrefix(p)
	}
	for _, p := range w.Map {
		used.AddPrefix(p.Real)
		if p.Seen.IsValid() {
			used.AddPrefix(p.Seen)
		}
	}
	set, err := used.IPSet()
	if err != nil {
		return nil, fmt.Errorf("the networks that are in use: %w", err)
	}
	return set, nil
}

// only returns the set of a network's addresses.
func only(p netip.Prefix) *netipx.IPSet {
	var b netipx.IPSetBuilder
	b.AddPrefix(p)
	set, _ := b.IPSet()
	return set
}
