package routes

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"go4.org/netipx"
)

// HostNetwork is a network that the laptop has a use for.
type HostNetwork struct {
	Prefix    netip.Prefix
	Interface string
	Address   bool // of the interface; otherwise a route leads there
}

func (h HostNetwork) String() string {
	if h.Address {
		return fmt.Sprintf("interface %s has the address %s", h.Interface, h.Prefix)
	}
	return fmt.Sprintf("interface %s has the route %s", h.Interface, h.Prefix)
}

// wide says whether a route means "everything else", as the default route does and what VPNs put in its place. The largest private
// networks, 10.0.0.0/8 and fc00::/7, are not.
func wide(p netip.Prefix) bool {
	return p.Addr().Is4() && p.Bits() < 8 || p.Addr().Is6() && p.Bits() < 7
}

// usersOf lists the laptop's networks that have addresses of a part. An interface's address stands for the route that comes with it.
func usersOf(part *netipx.IPSet, host []HostNetwork) (all []HostNetwork) {
	for _, h := range host {
		same := func(o HostNetwork) bool { return o.Interface == h.Interface && o.Prefix.Masked() == h.Prefix.Masked() }
		if !wide(h.Prefix) && part.OverlapsPrefix(h.Prefix.Masked()) && !slices.ContainsFunc(all, same) {
			all = append(all, h)
		}
	}
	return all
}

// Collision is a network of the cluster's at addresses that the laptop uses.
type Collision struct {
	Subnet netip.Prefix
	Host   HostNetwork
}

// overlap is the network that both want.
func (c Collision) overlap() netip.Prefix {
	if c.Host.Prefix.Bits() > c.Subnet.Bits() {
		return c.Host.Prefix.Masked()
	}
	return c.Subnet
}

// Explain says what collides and what to do about it, in one sentence.
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
	return errors.New(text + " in use on this laptop: see the cluster's at other addresses with --map-subnet auto, keep the laptop's with " + strings.Join(never, " ") +
		", take the cluster's instead with " + strings.Join(also, " ") + ", or connect without root (--rootless), where the laptop's networks do not matter")
}

// pools are where networks of the cluster's may be seen, first come first served: what is set apart for tests between networks and is next
// to the laptops' own addresses (RFC 2544), for carriers (RFC 6598), and for private use (RFC 1918). For IPv6, a part of the private
// addresses (RFC 4193).
var pools = []netip.Prefix{
	netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("fd64:6574::/32"),
}

// place finds where a network is seen, or checks the place that the user has found.
func (w *Overrides) place(i int, c Cluster, host []HostNetwork) error {
	pair := &w.Map[i]
	var taken netipx.IPSetBuilder
	for _, h := range host {
		if !wide(h.Prefix) {
			taken.AddPrefix(h.Prefix.Masked())
		}
	}
	if pair.Seen.IsValid() {
		set, err := taken.IPSet()
		if err != nil {
			return fmt.Errorf("the laptop's networks: %w", err)
		}
		if set.OverlapsPrefix(pair.Seen) {
			users := usersOf(only(pair.Seen), host)
			return fmt.Errorf("--map-subnet %s: %s is in use on this laptop itself (%s): choose another one, or --map-subnet %s=auto", pair, pair.Seen, users[0], pair.Real)
		}
	}
	for _, all := range [][]netip.Prefix{c.Subnets, w.Also} {
		for _, p := range all {
			if pair.Seen.IsValid() && pair.Seen.Overlaps(p) {
				return fmt.Errorf("--map-subnet %s: %s is a network of the cluster's too: choose another one, or --map-subnet %s=auto", pair, p, pair.Real)
			}
			taken.AddPrefix(p)
		}
	}
	if pair.Seen.IsValid() {
		return nil
	}
	for _, p := range w.Map {
		taken.AddPrefix(p.Real)
		if p.Seen.IsValid() {
			taken.AddPrefix(p.Seen)
		}
	}
	set, err := taken.IPSet()
	if err != nil {
		return fmt.Errorf("the networks that are taken: %w", err)
	}
	for _, pool := range pools {
		if pool.Addr().Is4() != pair.Real.Addr().Is4() || pool.Bits() > pair.Real.Bits() {
			continue
		}
		for at := pool.Addr(); pool.Contains(at); {
			candidate := netip.PrefixFrom(at, pair.Real.Bits())
			if !set.OverlapsPrefix(candidate) {
				pair.Seen = candidate
				return nil
			}
			at = netipx.PrefixLastIP(candidate).Next()
		}
	}
	return fmt.Errorf("there is no place on this laptop for the cluster's network %s: name one with --map-subnet %s=CIDR", pair.Real, pair.Real)
}

func only(p netip.Prefix) *netipx.IPSet {
	var b netipx.IPSetBuilder
	b.AddPrefix(p)
	set, _ := b.IPSet()
	return set
}
