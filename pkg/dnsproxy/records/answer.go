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
	// TTL is the TTL of all records, in seconds. It is CoreDNS's default.
	TTL = 5
	// maxChain is how many ExternalName services may point to one another in a row.
	maxChain = 10
)

// Answer is the content of a DNS reply.
type Answer struct {
	Rcode             int
	Answer, Ns, Extra []dns.RR
}

// entry is one meaning of a name: an address with a port, or another name.
type entry struct {
	address  address
	port     int
	target   string // of the SRV record
	external string // the other name; empty for an address
}

// request holds the parts of a question's name.
type request struct {
	port, protocol, endpoint, service string
}

// Answer answers a question of class IN. ok is false when only the cluster's DNS can answer.
func (z *Zone) Answer(q dns.Question) (a Answer, ok bool) {
	// The answers to ANY, SOA and zone transfers depend on CoreDNS's configuration, even for names
	// that do not exist.
	if q.Qclass != dns.ClassINET || !supports(q.Qtype) || strings.IndexByte(q.Name, '\\') >= 0 {
		return Answer{}, false
	}
	z.mu.RLock()
	defer z.mu.RUnlock()
	lower := strings.ToLower(q.Name)
	if strings.HasSuffix(lower, ".arpa.") {
		return z.reverseLocked(q, lower)
	}
	base, inZone := strings.CutSuffix(lower, z.suffix)
	if !inZone || base == "" {
		return Answer{}, false
	}
	domain := q.Name[len(q.Name)-len(z.domain)+1:] // in the case of the question
	r, valid := split(base)
	if !valid {
		return missing(domain, z.serial), true
	}
	entries, found, known := z.findLocked(r, domain)
	switch {
	case !known:
		return Answer{}, false
	case !found:
		return missing(domain, z.serial), true
	}
	return z.recordsLocked(q, entries, domain)
}

// recordsLocked answers a question with the records of its type that a name with these entries has.
// ok is false when only the cluster's DNS can answer.
func (z *Zone) recordsLocked(q dns.Question, entries []entry, domain string) (a Answer, ok bool) {
	switch q.Qtype {
	case dns.TypeA, dns.TypeAAAA:
		all, known := z.addressesLocked(q, entries, domain, nil)
		if !known {
			return Answer{}, false
		}
		a.Answer = all
	case dns.TypeSRV:
		entries = slices.DeleteFunc(entries, func(e entry) bool { return e.external != "" })
		a.Answer, a.Extra = services(q, entries)
	case dns.TypeCNAME:
		if entries[0].external != "" {
			a.Answer = []dns.RR{cname(q.Name, entries[0].external)}
		}
	}
	// The name has no record of any other type.
	if len(a.Answer) == 0 {
		a.Ns = []dns.RR{soa(domain, z.serial)}
	}
	return a, true
}

// supports reports whether Answer answers questions of a type.
func supports(kind uint16) bool {
	switch kind {
	case dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeCNAME, dns.TypeTXT, dns.TypeMX, dns.TypePTR,
		dns.TypeNS, dns.TypeHTTPS, dns.TypeSVCB:
		return true
	}
	return false
}

// split parses the part of a name before the namespace. Like CoreDNS, it accepts ports and
// protocols without an underscore.
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

// matches reports whether a port has the name and the protocol of the question. An empty part
// matches every port.
func (r request) matches(p Port) bool {
	return (r.port == "" || strings.EqualFold(r.port, p.Name)) &&
		(r.protocol == "" || strings.EqualFold(r.protocol, p.Protocol))
}

// findLocked returns what a name stands for. known is false when only the cluster's DNS can tell.
func (z *Zone) findLocked(r request, domain string) (all []entry, found, known bool) {
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
		return nil, false, false // the service has no address yet
	case s.ClusterIPs[0] != None && r.endpoint == "":
		return clusterIPs(s, r, name)
	}
	return z.endpointsLocked(s, r, name)
}

// clusterIPs returns the cluster IPs of a service, once for each port that matches.
func clusterIPs(s *Service, r request, name string) (all []entry, found, known bool) {
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

// endpointsLocked returns the endpoints of a headless service, or one endpoint of any service.
// Their order does not matter: the kubernetes plugin has none, and CoreDNS's loadbalance shuffles.
func (z *Zone) endpointsLocked(s *Service, r request, name string) (all []entry, found, known bool) {
	for _, slice := range z.backends[s.Name] {
		for _, b := range slice {
			if r.endpoint != "" && !strings.EqualFold(r.endpoint, b.label) {
				continue
			}
			if !b.address.ip.IsValid() {
				return nil, false, false // an EndpointSlice of the type FQDN
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

// addressesLocked returns the A or AAAA records of a name, after the CNAME records that lead to
// them.
func (z *Zone) addressesLocked(
	q dns.Question, entries []entry, domain string, chain []string,
) (all []dns.RR, known bool) {
	seen := map[string]bool{}
	for _, e := range entries {
		if e.external != "" {
			return z.followLocked(q, e.external, domain, chain)
		}
		if e.address.ip.Is4() != (q.Qtype == dns.TypeA) || seen[e.address.text] {
			continue
		}
		seen[e.address.text] = true
		all = append(all, record(q.Name, e.address.ip))
	}
	// many programs use only the first record
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all, true
}

// followLocked answers for an ExternalName service whose target is in this namespace. For every
// other target known is false: the cluster's DNS has to answer, because a pod sees the outside
// through it.
func (z *Zone) followLocked(q dns.Question, target, domain string, chain []string) (all []dns.RR, known bool) {
	lower := strings.ToLower(dns.Fqdn(target))
	if dns.IsSubDomain(strings.ToLower(q.Name), lower) || len(chain) > maxChain || slices.Contains(chain, lower) {
		return nil, true
	}
	base, inZone := strings.CutSuffix(lower, z.suffix)
	if !inZone || base == "" {
		return nil, false
	}
	r, valid := split(base)
	if !valid {
		return nil, true
	}
	entries, _, known := z.findLocked(r, domain)
	if !known {
		return nil, false
	}
	next := dns.Question{Name: dns.Fqdn(target), Qtype: q.Qtype, Qclass: q.Qclass}
	rest, known := z.addressesLocked(next, entries, domain, append(chain, lower))
	if !known || len(rest) == 0 {
		return nil, known // CoreDNS returns no CNAME record to a name without addresses
	}
	return append([]dns.RR{cname(q.Name, target)}, rest...), true
}

// services returns SRV records, and the addresses of their targets. The weights, and the rule for
// duplicates, are CoreDNS's.
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

// reverseLocked answers for cluster IPs, which belong to one service of the whole cluster. It does
// not answer for endpoints: endpoints of other namespaces may have the same address, as pods on the
// node's network do.
func (z *Zone) reverseLocked(q dns.Question, lower string) (Answer, bool) {
	ip, err := Reverse(lower)
	name, ok := z.byIP[ip]
	if err != nil || !ok || q.Qtype != dns.TypePTR {
		return Answer{}, false
	}
	return Answer{Answer: []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: name + z.suffix}}}, true
}

// Missing returns the answer for a name that does not exist. domain is the cluster's domain with a
// dot at its end, in the case of the question.
func Missing(domain string) Answer { return missing(domain, now()) }

func missing(domain string, serial uint32) Answer {
	return Answer{Rcode: dns.RcodeNameError, Ns: []dns.RR{soa(domain, serial)}}
}

// soa returns the record of a negative answer. It bounds how long the answer may be cached, as
// CoreDNS's does.
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
