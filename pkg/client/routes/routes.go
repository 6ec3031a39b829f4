// Package routes decides which networks lead to the VIF: the cluster's, with what the user wants otherwise, without the way to the
// cluster itself, and without what the laptop has a use of its own for.
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

// auto leaves a choice to detour.
const auto = "auto"

// Overrides are what the user says about networks.
type Overrides struct {
	// Also lead to the VIF, and are the cluster's even if the laptop uses them. Never do not lead there.
	Also, Never []netip.Prefix
	// Map are networks that are seen elsewhere. A pair without Seen leaves that place to detour.
	Map remap.Table
	// MapAll lets detour find other places for all networks that the laptop uses itself.
	MapAll bool
}

// Parse reads the values of --also-proxy, --never-proxy and --map-subnet.
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
			return w, fmt.Errorf("--map-subnet %s %w: write for example --map-subnet 10.96.0.0/16=198.19.0.0/16, 10.96.0.0/16=auto, or auto", visible(text), err)
		}
		w.Map = append(w.Map, pair)
	}
	return w, nil
}

// parsePair reads CIDR=CIDR or CIDR=auto. Its errors follow the text in a sentence.
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
			return pair, fmt.Errorf("does not go (%w)", err)
		}
	}
	pair.Real = pair.Real.Masked()
	return pair, nil
}

// visible is a text as a sentence shows it, also when it is empty.
func visible(text string) string {
	if text == "" {
		return `""`
	}
	return text
}

func prefixes(flag string, texts []string) (all []netip.Prefix, err error) {
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if a, aerr := netip.ParseAddr(text); err != nil && aerr == nil {
			p, err = a.Prefix(a.BitLen())
		}
		if err != nil {
			return nil, fmt.Errorf("%s %s is not a network: write for example %s 10.1.0.0/16", flag, visible(text), flag)
		}
		all = append(all, p.Masked())
	}
	return all, nil
}

// Cluster is what is known of the cluster.
type Cluster struct {
	Subnets []netip.Prefix
	// Nodes are addresses of nodes in Subnets. They are reached as they were before.
	Nodes []netip.Addr
	// Server are the addresses of the API server, or of the proxy to it. The tunnel must not lead into itself.
	Server []netip.Addr
}

// Plan is what leads to the VIF.
type Plan struct {
	Routes []netip.Prefix
	Remap  remap.Table
}

// Plan decides, and says which networks collide with the laptop's. Those are not in the plan. Places that it finds for networks are noted
// in the overrides, so that the next plan has the same.
func (w *Overrides) Plan(c Cluster, host []HostNetwork) (Plan, []Collision, error) {
	var collisions []Collision
	set := new(netipx.IPSetBuilder)
	for _, subnet := range c.Subnets {
		part, err := w.ofUse(subnet, c)
		if err != nil {
			return Plan{}, nil, err
		}
		users := usersOf(part, host)
		switch {
		case len(users) == 0:
		case w.MapAll:
			w.Map = append(w.Map, remap.Pair{Real: subnet.Masked()})
		default:
			for _, h := range users {
				collisions = append(collisions, Collision{subnet, h})
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
	for i := range w.Map {
		if err := w.place(i, c, host); err != nil {
			return Plan{}, nil, err
		}
	}
	if err := w.Map.Check(); err != nil {
		return Plan{}, nil, fmt.Errorf("--map-subnet: %w", err)
	}
	real, err := set.IPSet()
	if err != nil {
		return Plan{}, nil, fmt.Errorf("the networks of the cluster: %w", err)
	}
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
		return Plan{}, nil, fmt.Errorf("the networks of the cluster: %w", err)
	}
	return Plan{Routes: over(all.Prefixes(), host), Remap: slices.Clone(w.Map)}, collisions, nil
}

// over makes routes longer than those that the laptop has within them, by cutting these in two: the longer one counts, and the system
// refuses a second one of the same length. It is what the user wants; other collisions are not in routes.
func over(routes []netip.Prefix, host []HostNetwork) []netip.Prefix {
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

// within is the part of a set that lies in a network.
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

// ofUse is the part of a network of the cluster's for which nothing else is wished.
func (w *Overrides) ofUse(subnet netip.Prefix, c Cluster) (*netipx.IPSet, error) {
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
