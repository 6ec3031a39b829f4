package dnsproxy

import (
	"context"
	"fmt"
	"net/netip"
	"strings"

	"github.com/miekg/dns"
)

// mappedTTL is the TTL, in seconds, of names from --map. It equals CoreDNS's TTL for the cluster's
// names.
const mappedTTL = 5

// Rules are the user's flags about names.
type Rules struct {
	include, exclude []string          // suffixes, with a dot at both ends
	names            map[string]string // name to address, or to another name; names end with a dot
}

// ParseRules parses the values of --include-suffix, --exclude-suffix and --map. Its errors are
// sentences for the user.
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
			return r, fmt.Errorf("--map %s is not NAME=TARGET: write for example --map db.example.com=10.1.2.3 "+
				"or --map db.example.com=db.shop", text)
		}
		if _, err := netip.ParseAddr(target); err != nil {
			target = strings.ToLower(dns.Fqdn(target))
		}
		r.names[strings.ToLower(dns.Fqdn(name))] = target
	}
	return r, nil
}

// isName reports whether s is a domain name that a flag can hold.
func isName(s string) bool {
	_, ok := dns.IsDomainName(s)
	return ok && s != "" && s != "." && !strings.ContainsAny(s, " =/")
}

// suffixes parses the suffixes of one flag, with or without a leading "*." or ".".
func suffixes(flag string, texts []string) (all []string, err error) {
	for _, text := range texts {
		suffix := strings.TrimPrefix(strings.TrimPrefix(text, "*"), ".")
		if !isName(suffix) {
			return nil, fmt.Errorf("%s %s is not a domain suffix: write for example %s corp.example.com", flag, text,
				flag)
		}
		all = append(all, "."+strings.ToLower(dns.Fqdn(suffix)))
	}
	return all, nil
}

// belongs reports whether a name belongs to the cluster by the rules, and whether any rule matches.
// Of several rules the one with the longest suffix decides.
func (r Rules) belongs(name string) (cluster, matched bool) {
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

// answerByRules answers by the rules for suffixes, or as without rules when none matches.
func (p *Proxy) answerByRules(ctx context.Context, query *dns.Msg, name, network string) *dns.Msg {
	switch cluster, matched := p.config.Rules.belongs(name); {
	case !matched:
		return p.answerByName(ctx, query, name, network)
	case cluster:
		return p.inCluster(ctx, query, name, network)
	}
	return p.askUpstream(ctx, query, network)
}

// mappingOf returns what the user mapped a name to. It also finds a name to which the search path
// of a program has added a suffix.
func (p *Proxy) mappingOf(name string) (target string, ok bool) {
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

// answerMapping answers with an address, or with a CNAME record and the records of its target.
func (p *Proxy) answerMapping(ctx context.Context, query *dns.Msg, target, network string) *dns.Msg {
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
		found := p.answerByRules(ctx, ask, target, network)
		if found == nil {
			return nil
		}
		answer.Rcode, answer.Answer, answer.Ns = found.Rcode, found.Answer, found.Ns
	}
	answer.Answer = append([]dns.RR{alias}, answer.Answer...)
	return withEDNS(query, answer)
}
