package dnsproxy

import (
	"net/netip"
	"slices"

	"github.com/miekg/dns"

	"github.com/detour-dev/detour/pkg/dnsproxy/records"
	"github.com/detour-dev/detour/pkg/vif/remap"
)

// networks are the networks behind the VIF, at the addresses at which the laptop sees them.
type networks struct {
	all   []netip.Prefix
	table remap.Table // the mapped ones
}

// SetNetworks sets the networks behind the VIF. The proxy asks the cluster for their reverse names,
// and replaces mapped addresses in the cluster's answers by those that the laptop sees.
func (p *Proxy) SetNetworks(all []netip.Prefix, table remap.Table) {
	p.networks.Store(&networks{all: all, table: table})
}

// clusterReverse returns the reverse name that the cluster uses for an address behind the VIF. ok
// is false for other addresses.
func (p *Proxy) clusterReverse(reverse string) (name string, ok bool) {
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

// mapAddresses replaces mapped addresses in an answer of the cluster by those that the laptop sees.
func (p *Proxy) mapAddresses(answer *dns.Msg) *dns.Msg {
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
