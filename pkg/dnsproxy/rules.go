package dnsproxy

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// mappedTTL is how long a program may remember what the user has mapped, in seconds: as long as CoreDNS lets it remember the cluster's.
const mappedTTL = 5

// Rules are what the user says about names.
type Rules struct {
	include, exclude []string          // suffixes with a dot at both ends
	names            map[string]string // from a name to an address, or to a name with a dot at its end
}

// ParseRules reads the values of --include-suffix, --exclude-suffix and --map.
func ParseRules(include, exclude, maps []string) (r Rules, err error) {
	if r.include, err = suffixes("--include-suffix", include); err != nil {
		return r, err
	}
	if r.exclude, err = suffixes("--exclude-suffix", exclude); err != nil {
		return r, err
	}
	r.names = map[string]string{}
	for _, text := range maps {
		name, target, _ := strings.Cut(text, "=")
		if !isName(name) || !isName(target) {
			return r, fmt.Errorf("--map %s is not NAME=TARGET: write for example --map db.example.com=10.1.2.3 or --map db.example.com=db.shop", text)
		}
		if _, err := netip.ParseAddr(target); err != nil {
			target = strings.ToLower(dns.Fqdn(target))
		}
		r.names[strings.ToLower(dns.Fqdn(name))] = target
	}
	return r, nil
}

func isName(s string) bool {
	_, ok := dns.IsDomainName(s)
	return ok && s != "" && s != "." && !strings.ContainsAny(s, " =/")
}

func suffixes(flag string, texts []string) (all []string, err error) {
	for _, text := range texts {
		suffix := strings.TrimPrefix(strings.TrimPrefix(text, "*"), ".")
		if !isName(suffix) {
			return nil, fmt.Errorf("%s %s is not the end of a name: write for example %s corp.example.com", flag, text, flag)
		}
		all = append(all, "."+strings.ToLower(dns.Fqdn(suffix)))
	}
	return all, nil
}

// side says where a name belongs, if there is a rule: of several the longest counts.
func (r Rules) side(name string) (cluster, ruled bool) {
	longest := func(all []string) (n int) {
		for _, s := range all {
			if strings.HasSuffix("."+name, s) {
				n = max(n, len(s))
			}
		}
		return n
	}
	in, out := longest(r.include), longest(r.exclude)
	return in > out, in+out > 0
}

// ruled answers by the rules for suffixes, and where there is none as usual.
func (p *Proxy) ruled(ctx context.Context, query *dns.Msg, name, network string) *dns.Msg {
	switch cluster, ruled := p.config.Rules.side(name); {
	case !ruled:
		return p.unruled(ctx, query, name, network)
	case cluster:
		return p.inCluster(ctx, query, name, network)
	}
	return p.exchange(ctx, query, p.upstream(), network)
}

// mapped says what the user has mapped a name to. A program's search path may have made a longer one of it.
func (p *Proxy) mapped(name string) (target string, ok bool) {
	if len(p.config.Rules.names) == 0 {
		return "", false
	}
	for _, suffix := range []string{".", "." + p.config.Namespace + ".svc" + p.domain, ".svc" + p.domain, p.domain} {
		if base, has := strings.CutSuffix(name, suffix); has {
			if target, ok = p.config.Rules.names[base+"."]; ok {
				return target, true
			}
		}
	}
	return "", false
}

// mappedTo answers with an address, or with another name and what there is to say of that.
func (p *Proxy) mappedTo(ctx context.Context, query *dns.Msg, target, network string) *dns.Msg {
	q := query.Question[0]
	answer := new(dns.Msg).SetReply(query)
	answer.RecursionAvailable = true
	header := dns.RR_Header{Name: q.Name, Class: dns.ClassINET, Ttl: mappedTTL}
	if address, err := netip.ParseAddr(target); err == nil {
		switch {
		case address.Is4() && q.Qtype == dns.TypeA:
			header.Rrtype = dns.TypeA
			answer.Answer = []dns.RR{&dns.A{Hdr: header, A: address.AsSlice()}}
		case address.Is6() && q.Qtype == dns.TypeAAAA:
			header.Rrtype = dns.TypeAAAA
			answer.Answer = []dns.RR{&dns.AAAA{Hdr: header, AAAA: address.AsSlice()}}
		}
		return withEDNS(query, answer)
	}
	header.Rrtype = dns.TypeCNAME
	alias := &dns.CNAME{Hdr: header, Target: target}
	if q.Qtype != dns.TypeCNAME {
		ask := query.Copy()
		ask.Question[0].Name = target
		found := p.ruled(ctx, ask, target, network)
		if found == nil {
			return nil
		}
		answer.Rcode, answer.Answer, answer.Ns = found.Rcode, found.Answer, found.Ns
	}
	answer.Answer = append([]dns.RR{alias}, answer.Answer...)
	return withEDNS(query, answer)
}
