package dnsproxy

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/detour-dev/detour/pkg/dnsproxy/records"
	"github.com/detour-dev/detour/pkg/vif/remap"
)

// networks are those behind the VIF, as the laptop sees them, and which are seen elsewhere than they are.
type networks struct {
	all   []netip.Prefix
	table remap.Table
}

// SetNetworks says which networks are behind the VIF now: their reverse names are the cluster's. Answers of the cluster have the addresses
// at which the laptop sees it.
func (p *Proxy) SetNetworks(all []netip.Prefix, table remap.Table) {
	p.networks.Store(&networks{all, table})
}

// ours is the cluster's reverse name of an address behind the VIF.
func (p *Proxy) ours(reverse string) (name string, ok bool) {
	address, err := records.Reverse(reverse)
	n := p.networks.Load()
	if err != nil || !slices.ContainsFunc(n.all, func(s netip.Prefix) bool { return s.Contains(address) }) {
		return "", false
	}
	real := n.table.Real(address)
	if real == address {
		return reverse, true
	}
	name, err = dns.ReverseAddr(real.String())
	return name, err == nil
}

// seen puts the addresses at which the laptop sees the cluster into its answer.
func (p *Proxy) seen(answer *dns.Msg) *dns.Msg {
	table := p.networks.Load().table
	if answer == nil || len(table) == 0 {
		return answer
	}
	for _, section := range [][]dns.RR{answer.Answer, answer.Extra} {
		for i, rr := range section {
			switch rr := rr.(type) {
			case *dns.A:
				if a, ok := netip.AddrFromSlice(rr.A); ok {
					section[i] = &dns.A{Hdr: rr.Hdr, A: table.Seen(a.Unmap()).AsSlice()}
				}
			case *dns.AAAA:
				if a, ok := netip.AddrFromSlice(rr.AAAA); ok {
					section[i] = &dns.AAAA{Hdr: rr.Hdr, AAAA: table.Seen(a).AsSlice()}
				}
			}
		}
	}
	return answer
}
