// Package routes decides which networks lead to the VIF: those of the cluster, changed by what the
// user asks for, without the path to the cluster itself, and without networks that the laptop uses.
// Start with Overrides.Plan.
//
// The package changes nothing on the laptop. Package vif sets the routes on its interface, and they
// disappear with the interface: nothing else restores them.
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

// auto in place of an address lets detour choose one.
const auto = "auto"

// Overrides are the user's flags about networks.
type Overrides struct {
	// Also are networks that lead to the VIF too, even if the laptop uses them. Never are networks
	// that do not.
	Also, Never []netip.Prefix
	// Map are networks of the cluster that the laptop sees at other addresses. Detour chooses the
	// addresses of a pair without Seen.
	Map remap.Table
	// MapAll lets detour map every network that the laptop uses itself.
	MapAll bool
}

// Parse parses the values of --also-proxy, --never-proxy and --map-subnet. Its errors are sentences
// for the user.
func Parse(also, never, maps []string) (w Overrides, err error) {
	if w.Also, err = prefixes("--also-proxy", also); err != nil {
		return w, err
	}
	if w.Never, err = prefixes("--never-proxy", never); err != nil {
		return w, err
	}
	for _, text := range maps {
		if text == auto {
			w.MapAll = true
			continue
		}
		pair, err := parsePair(text)
		if err != nil {
			return w, fmt.Errorf("--map-subnet %s %w: write for example --map-subnet 10.96.0.0/16=198.19.0.0/16, "+
				"10.96.0.0/16=auto, or auto", visible(text), err)
		}
		w.Map = append(w.Map, pair)
	}
	return w, nil
}

// parsePair parses CIDR=CIDR or CIDR=auto. Its errors continue a sentence that begins with
// the text.
func parsePair(text string) (pair remap.Pair, err error) {
	from, to, ok := strings.Cut(text, "=")
	notPair := errors.New("is not CIDR=CIDR")
	if pair.Real, err = netip.ParsePrefix(from); err != nil || !ok {
		return pair, notPair
	}
	if to != auto {
		if pair.Seen, err = netip.ParsePrefix(to); err != nil {
			return pair, notPair
		}
		if err := pair.Check(); err != nil {
			return pair, fmt.Errorf("cannot be used (%w)", err)
		}
	}
	pair.Real = pair.Real.Masked()
	return pair, nil
}

// visible returns a text as a sentence shows it: an empty text as two quotes.
func visible(text string) string {
	if text == "" {
		return `""`
	}
	return text
}

// prefixes parses networks and addresses of one flag.
func prefixes(flag string, texts []string) (all []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); err != nil && aerr == nil {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("%s %s is not a network: write for example %s 10.1.0.0/16",
				flag, visible(text), flag)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// Cluster is what Plan needs to know of the cluster.
type Cluster struct {
	Subnets []netip.Prefix
	// Nodes are addresses of nodes inside Subnets. The laptop reaches them as it did before.
	Nodes []netip.Addr
	// Server are the addresses of the API server, or of the proxy in front of it. They must not
	// lead into the tunnel, because the tunnel goes there.
	Server []netip.Addr
}

// Plan is the decision: which networks lead to the VIF, and which are mapped.
type Plan struct {
	Routes []netip.Prefix
	Remap  remap.Table
}

// Plan decides which networks lead to the VIF. It returns the networks of the cluster that collide
// with networks of the laptop; they are not in the plan. It notes the addresses that it chooses for
// mapped networks in the overrides, so that the next plan has the same.
func (w *Overrides) Plan(c Cluster, host []HostNetwork) (Plan, []Collision, error) {
	real, collisions, err := w.clusterSet(c, host)
	if err != nil {
		return Plan{}, nil, err
	}
	for i := range w.Map {
		if err := w.place(i, c, host); err != nil {
			return Plan{}, nil, err
		}
	}
	if err := w.Map.Check(); err != nil {
		return Plan{}, nil, fmt.Errorf("--map-subnet: %w", err)
	}
	seen, err := w.seenSet(real)
	if err != nil {
		return Plan{}, nil, err
	}
	return Plan{Routes: outrank(seen.Prefixes(), host), Remap: slices.Clone(w.Map)}, collisions, nil
}

// clusterSet returns the addresses of the cluster that lead to the VIF, before any mapping.
func (w *Overrides) clusterSet(c Cluster, host []HostNetwork) (*netipx.IPSet, []Collision, error) {
	var collisions []Collision
	set := new(netipx.IPSetBuilder)
	for _, subnet := range c.Subnets {
		part, err := w.undecided(subnet, c)
		if err != nil {
			return nil, nil, err
		}
		users := usersOf(part, host)
		switch {
		case len(users) == 0:
		case w.MapAll:
			w.Map = append(w.Map, remap.Pair{Real: subnet.Masked()})
		default:
			for _, h := range users {
				collisions = append(collisions, Collision{Subnet: subnet, Host: h})
			}
			continue
		}
		set.AddPrefix(subnet)
	}
	for _, a := range c.Nodes {
		set.Remove(a)
	}
	for _, p := range w.Also {
		set.AddPrefix(p)
	}
	for _, p := range w.Never {
		set.RemovePrefix(p)
	}
	for _, a := range c.Server {
		set.Remove(a)
	}
	all, err := set.IPSet()
	if err != nil {
		return nil, nil, fmt.Errorf("the networks of the cluster: %w", err)
	}
	return all, collisions, nil
}

// seenSet replaces the mapped parts of a set by the addresses at which the laptop sees them.
func (w *Overrides) seenSet(real *netipx.IPSet) (*netipx.IPSet, error) {
	var seen netipx.IPSetBuilder
	seen.AddSet(real)
	for _, pair := range w.Map {
		seen.RemovePrefix(pair.Real)
	}
	for _, pair := range w.Map {
		for _, p := range within(real, pair.Real) {
			seen.AddPrefix(netip.PrefixFrom(remap.Table{pair}.Seen(p.Addr()), p.Bits()))
		}
	}
	all, err := seen.IPSet()
	if err != nil {
		return nil, fmt.Errorf("the networks of the cluster: %w", err)
	}
	return all, nil
}

// outrank splits routes so that they are longer than the laptop's own routes inside them. The
// system prefers the longer route, and refuses a second route of the same length. Only networks
// that the user asked for get here with a collision.
func outrank(routes []netip.Prefix, host []HostNetwork) []netip.Prefix {
	for _, h := range host {
		p := h.Prefix.Masked()
		around := func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) }
		if wide(p) || p.IsSingleIP() || !slices.ContainsFunc(routes, around) {
			continue
		}
		routes = slices.DeleteFunc(routes, func(r netip.Prefix) bool { return r == p })
		first := netip.PrefixFrom(p.Addr(), p.Bits()+1)
		routes = append(routes, first, netip.PrefixFrom(netipx.PrefixLastIP(first).Next(), first.Bits()))
	}
	slices.SortFunc(routes, netip.Prefix.Compare)
	return slices.Compact(routes)
}

// within returns the part of a set that lies in a network.
func within(set *netipx.IPSet, network netip.Prefix) []netip.Prefix {
	var b netipx.IPSetBuilder
	b.AddSet(set)
	b.Intersect(only(network))
	part, err := b.IPSet()
	if err != nil {
		return nil
	}
	return part.Prefixes()
}

// undecided returns the part of a cluster's network that no override and no address of the cluster
// itself covers.
func (w *Overrides) undecided(subnet netip.Prefix, c Cluster) (*netipx.IPSet, error) {
	var part netipx.IPSetBuilder
	part.AddPrefix(subnet)
	for _, all := range [][]netip.Addr{c.Nodes, c.Server} {
		for _, a := range all {
			part.Remove(a)
		}
	}
	for _, all := range [][]netip.Prefix{w.Never, w.Also} {
		for _, p := range all {
			part.RemovePrefix(p)
		}
	}
	for _, p := range w.Map {
		part.RemovePrefix(p.Real)
	}
	set, err := part.IPSet()
	if err != nil {
		return nil, fmt.Errorf("the cluster's network %s: %w", subnet, err)
	}
	return set, nil
}
