package records

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	// TTL is how long programs may keep a record: CoreDNS's own default.
	TTL = 5
	// maxChain is how many ExternalName services may follow each other.
	maxChain = 10
)

// Answer is what a reply says.
type Answer struct {
	Rcode             int
	Answer, Ns, Extra []dns.RR
}

// entry is an address, with a port, that a question's name stands for; or the other name that it stands for.
type entry struct {
	address  address
	port     int
	target   string // of a SRV record
	external string
}

// request is a question's name taken apart.
type request struct {
	port, protocol, endpoint, service string
}

// Answer answers a question of class IN. ok is false when only the cluster's DNS can tell.
func (z *Zone) Answer(q dns.Question) (a Answer, ok bool) {
	// What the cluster says to ANY, SOA or a transfer is a matter of its configuration, for names that do not exist too.
	if q.Qclass != dns.ClassINET || !answered(q.Qtype) || strings.IndexByte(q.Name, '\\') >= 0 {
		return Answer{}, false
	}
	z.mu.RLock()
	defer z.mu.RUnlock()
	lower := strings.ToLower(q.Name)
	if strings.HasSuffix(lower, ".arpa.") {
		return z.reverse(q, lower)
	}
	base, ours := strings.CutSuffix(lower, z.suffix)
	if !ours || base == "" {
		return Answer{}, false
	}
	domain := q.Name[len(q.Name)-len(z.domain)+1:] // as the program wrote it
	r, valid := split(base)
	if !valid {
		return missing(domain, z.serial), true
	}
	entries, found, known := z.find(r, domain)
	switch {
	case !known:
		return Answer{}, false
	case q.Qtype == dns.TypeSRV:
		entries = slices.DeleteFunc(entries, func(e entry) bool { return e.external != "" })
	}
	if !found {
		return missing(domain, z.serial), true
	}
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		all, known := z.addresses(q, entries, domain, nil)
		if !known {
			return Answer{}, false
		}
		a.Answer = all
	case dns.TypeSRV:
		a.Answer, a.Extra = services(q, entries)
	case dns.TypeCNAME:
		if entries[0].external != "" {
			a.Answer = []dns.RR{cname(q.Name, entries[0].external)}
		}
	}
	// Of the other types the name has no record.
	if len(a.Answer) == 0 {
		a.Ns = []dns.RR{soa(domain, z.serial)}
	}
	return a, true
}

// answered says whether questions of a type are answered here at all.
func answered(kind uint16) bool {
	switch kind {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeCNAME, dns.TypeTXT, dns.TypeMX, dns.TypePTR, dns.TypeNS, dns.TypeHTTPS, dns.TypeSVCB:
		return true
	}
	return false
}

// split takes apart what stands before the namespace. As CoreDNS does, it does not insist on underscores.
func split(base string) (r request, valid bool) {
	labels := strings.Split(base, ".")
	last := len(labels) - 1
	if slices.Contains(labels, "") {
		return r, false
	}
	r.service = labels[last]
	switch last {
	case 0:
	case 1:
		r.endpoint = labels[0]
	case 2:
		r.port, r.protocol = strings.TrimPrefix(labels[0], "_"), strings.TrimPrefix(labels[1], "_")
	default:
		return r, false
	}
	return r, true
}

// matches compares a port with a question's; what the question leaves out is any.
func (r request) matches(p Port) bool {
	return (r.port == "" || strings.EqualFold(r.port, p.Name)) && (r.protocol == "" || strings.EqualFold(r.protocol, p.Protocol))
}

// find returns what a name stands for. known is false when that is not to be told from here.
func (z *Zone) find(r request, domain string) (all []entry, found, known bool) {
	s := z.services[r.service]
	if s == nil {
		return nil, false, true
	}
	name := s.Name + "." + z.namespace + ".svc." + domain
	switch {
	case s.IsExternal:
		if _, err := netip.ParseAddr(s.External); err == nil || r != (request{service: r.service}) {
			return nil, false, true
		}
		return []entry{{external: s.External}}, true, s.External != ""
	case len(s.ClusterIPs) == 0:
		return nil, false, false // it has no address yet
	case s.ClusterIPs[0] != None && r.endpoint == "":
		for _, p := range s.Ports {
			if !r.matches(p) {
				continue
			}
			for _, text := range s.ClusterIPs {
				ip := parse(text)
				if !ip.ip.IsValid() {
					return nil, false, false
				}
				all = append(all, entry{address: ip, port: p.Number, target: name})
			}
		}
		return all, len(all) > 0, true
	}
	// Endpoints may be in any order: the kubernetes plugin has none, and CoreDNS's loadbalance shuffles.
	for _, slice := range z.backends[s.Name] {
		for _, b := range slice {
			if r.endpoint != "" && !strings.EqualFold(r.endpoint, b.label) {
				continue
			}
			if !b.address.ip.IsValid() {
				return nil, false, false // a slice of names
			}
			for _, p := range b.ports {
				if r.matches(p) {
					all = append(all, entry{address: b.address, port: p.Number, target: b.label + "." + name})
				}
			}
		}
	}
	return all, len(all) > 0, true
}

// addresses are the A or AAAA records of a name, behind the CNAME records that lead to them.
func (z *Zone) addresses(q dns.Question, entries []entry, domain string, chain []string) (all []dns.RR, known bool) {
	seen := map[string]bool{}
	for _, e := range entries {
		if e.external != "" {
			return z.follow(q, e.external, domain, chain)
		}
		if e.address.ip.Is4() != (q.Qtype == dns.TypeA) || seen[e.address.text] {
			continue
		}
		seen[e.address.text] = true
		all = append(all, record(q.Name, e.address.ip))
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] }) // many programs take the first
	return all, true
}

// follow answers for an ExternalName service. Another name of this namespace is looked up here. All others are for the cluster's
// DNS: how it sees the world outside is how a pod does.
func (z *Zone) follow(q dns.Question, target, domain string, chain []string) (all []dns.RR, known bool) {
	lower := strings.ToLower(dns.Fqdn(target))
	if dns.IsSubDomain(strings.ToLower(q.Name), lower) || len(chain) > maxChain || slices.Contains(chain, lower) {
		return nil, true
	}
	base, ours := strings.CutSuffix(lower, z.suffix)
	if !ours || base == "" {
		return nil, false
	}
	r, valid := split(base)
	if !valid {
		return nil, true
	}
	entries, _, known := z.find(r, domain)
	if !known {
		return nil, false
	}
	next := dns.Question{Name: dns.Fqdn(target), Qtype: q.Qtype, Qclass: q.Qclass}
	rest, known := z.addresses(next, entries, domain, append(chain, lower))
	if !known || len(rest) == 0 {
		return nil, known // CoreDNS does not tell of a name that leads nowhere
	}
	return append([]dns.RR{cname(q.Name, target)}, rest...), true
}

// services are SRV records, and the addresses that a program needs next. The weights and what counts as a duplicate are CoreDNS's.
func services(q dns.Question, entries []entry) (all, extra []dns.RR) {
	type item struct {
		target  string
		port    uint16
		address string
	}
	seen := map[item]bool{}
	first := func(i item) bool {
		if seen[i] {
			return false
		}
		seen[i] = true
		return true
	}
	weight := uint16(max(1, math.Floor(100/float64(100*len(entries))*100)))
	for _, e := range entries {
		if e.port < 0 {
			continue
		}
		port := uint16(e.port) //nolint:gosec // the API server checks ports
		if first(item{target: e.target, port: port}) {
			all = append(all, &dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Weight: weight, Port: port, Target: e.target})
		}
		if first(item{target: e.target, address: e.address.text}) {
			extra = append(extra, record(e.target, e.address.ip))
		}
	}
	return all, extra
}

// reverse knows cluster IPs, which only one service of the cluster has. Endpoints of other namespaces may have the address of an
// endpoint here too (pods on the node's network do), so those are for the cluster's DNS.
func (z *Zone) reverse(q dns.Question, lower string) (Answer, bool) {
	ip, err := Reverse(lower)
	name, ok := z.byIP[ip]
	if err != nil || !ok || q.Qtype != dns.TypePTR {
		return Answer{}, false
	}
	return Answer{Answer: []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name + z.suffix}}}, true
}

// Missing says that a name does not exist. domain is the cluster's, with a dot at its end, as the program wrote it.
func Missing(domain string) Answer { return missing(domain, now()) }

func missing(domain string, serial uint32) Answer {
	return Answer{Rcode: dns.RcodeNameError, Ns: []dns.RR{soa(domain, serial)}}
}

// soa is the record that comes with the absence of others and says how long that is so, as CoreDNS has it.
func soa(domain string, serial uint32) dns.RR {
	return &dns.SOA{
		Hdr: header(domain, dns.TypeSOA), Ns: "ns.dns." + domain, Mbox: "hostmaster." + domain, Serial: serial,
		Refresh: 7200, Retry: 1800, Expire: 86400, Minttl: TTL,
	}
}

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: TTL}
}

func record(name string, ip netip.Addr) dns.RR {
	if ip.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()}
}

func cname(name, target string) dns.RR {
	return &dns.CNAME{Hdr: header(name, dns.TypeCNAME), Target: dns.Fqdn(target)}
}
