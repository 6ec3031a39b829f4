package dnsproxy

import (
	"context"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/detour-dev/detour/pkg/dnsproxy/records"
)

const (
	// namespaceTTL is how long the proxy remembers whether a namespace exists.
	namespaceTTL = 30 * time.Second
	// silenceTTL is how long the proxy waits before it asks for a namespace again, after the
	// cluster's DNS did not answer.
	silenceTTL = 3 * time.Second
	// maxNamespaces bounds how many namespaces the proxy remembers.
	maxNamespaces = 10000
	// ndots is the option ndots of a pod's resolv.conf: a name with fewer dots is first looked up
	// with the suffixes of the search path.
	ndots = 5
)

type namespaceEntry struct {
	exists, known bool
	until         time.Time
}

// answer answers a query. The proxy follows a pod's search path itself, in a pod's order. It does
// not leave that to the program's resolver: that resolver may have other options, and it would ask
// for each name of the internet with the cluster's suffixes first.
func (p *Proxy) answer(ctx context.Context, query *dns.Msg, network string) *dns.Msg {
	if len(query.Question) != 1 {
		return new(dns.Msg).SetRcode(query, dns.RcodeFormatError)
	}
	name := strings.ToLower(dns.Fqdn(query.Question[0].Name))
	if query.Opcode != dns.OpcodeQuery {
		return p.answerByName(ctx, query, name, network)
	}
	if target, ok := p.mappingOf(name); ok {
		return p.answerMapping(ctx, query, target, network)
	}
	return p.answerByRules(ctx, query, name, network)
}

// answerByName answers for a name that no rule matches.
func (p *Proxy) answerByName(ctx context.Context, query *dns.Msg, name, network string) *dns.Msg {
	switch {
	case strings.HasSuffix(name, p.domain):
		return p.inDomain(ctx, query, query.Question[0].Name, network)
	case strings.Contains(name, p.domain):
		// The laptop's own search path has added a suffix to a name of the cluster. The previous
		// resolvers need not learn that name.
		return withEDNS(query, new(dns.Msg).SetRcode(query, dns.RcodeNameError))
	case strings.HasSuffix(name, ".arpa."):
		if full, ok := p.clusterReverse(name); ok {
			return p.inCluster(ctx, query, full, network)
		}
	case strings.HasSuffix(name, ".svc."):
		return p.inDomain(ctx, query, strings.TrimSuffix(name, ".")+p.domain, network)
	default:
		if full := p.search(ctx, query, name); full != "" {
			return p.clusterFirst(ctx, query, full, network)
		}
	}
	return p.askUpstream(ctx, query, network)
}

// clusterFirst looks for a name in the cluster and then outside. When the cluster does not answer,
// the outside may still know the name. But when the outside does not know it either, the name may
// exist in the cluster, so clusterFirst returns nil, a failure.
func (p *Proxy) clusterFirst(ctx context.Context, query *dns.Msg, full, network string) *dns.Msg {
	part, cancel := halfOf(ctx)
	answer := p.inCluster(part, query, full, network)
	cancel()
	if answer != nil && answer.Rcode != dns.RcodeNameError {
		return answer
	}
	silent := answer == nil
	if answer = p.askUpstream(ctx, query, network); silent && answer != nil && answer.Rcode == dns.RcodeNameError {
		return nil
	}
	return answer
}

// halfOf returns a context with half of the remaining time.
func halfOf(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, _ := ctx.Deadline()
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}

// search returns the complete name that a name may stand for in the cluster, or an empty string. It
// tries the connected namespace, then the namespace that the last label names. The cluster must not
// learn which names of the internet the laptop asks for. So for two labels or more, search tries
// the connected namespace only with records that the laptop has, and the other only if it exists.
func (p *Proxy) search(ctx context.Context, query *dns.Msg, name string) string {
	labels := dns.SplitDomainName(name)
	if len(labels) == 0 || len(labels) > ndots {
		return ""
	}
	base := strings.TrimSuffix(name, ".")
	first := base + "." + p.config.Namespace + ".svc" + p.domain
	if len(labels) == 1 {
		return first
	}
	if a, ok := p.known(query, first); ok && a.Rcode == dns.RcodeSuccess {
		return first
	}
	// The longest such name is port.protocol.service.namespace.
	if len(labels) > 4 || len(labels) == 4 && !strings.HasPrefix(name, "_") {
		return ""
	}
	if exists, _ := p.namespace(ctx, labels[len(labels)-1]); exists {
		return base + ".svc" + p.domain
	}
	return ""
}

// inDomain answers for a name under the cluster's domain. A program's search path makes such names
// of every name (www.example.com.svc.cluster.local). inDomain does not ask the cluster for names
// that cannot exist there.
func (p *Proxy) inDomain(ctx context.Context, query *dns.Msg, full, network string) *dns.Msg {
	domain := full[len(full)-len(p.domain)+1:]
	labels := dns.SplitDomainName(strings.ToLower(full[:len(full)-len(p.domain)]))
	last := len(labels) - 1
	switch {
	case last < 1:
		// The cluster's administrator may have added such names.
	case labels[last] == "svc" || labels[last] == "pod":
		exists, known := p.namespace(ctx, labels[last-1])
		if !known {
			return nil
		}
		if !exists {
			return reply(query, records.Missing(domain))
		}
	case strings.Join(labels, ".") != "ns.dns":
		return reply(query, records.Missing(domain))
	}
	return p.inCluster(ctx, query, full, network)
}

// inCluster answers a query for a complete name of the cluster.
func (p *Proxy) inCluster(ctx context.Context, query *dns.Msg, full, network string) *dns.Msg {
	return p.mapAddresses(p.fromCluster(ctx, query, full, network))
}

// fromCluster answers from the watched records, from the cache, or by asking the cluster's DNS.
func (p *Proxy) fromCluster(ctx context.Context, query *dns.Msg, full, network string) *dns.Msg {
	if e := query.IsEdns0(); e != nil && e.Version() != 0 {
		// RFC 6891, section 6.1.3: a server answers BADVERS to a version that it does not know.
		return new(dns.Msg).SetRcode(query, dns.RcodeBadVers).SetEdns0(ednsSize, false)
	}
	if a, ok := p.known(query, full); ok {
		return reply(query, a)
	}
	ask := strip(query, full)
	if query.Opcode != dns.OpcodeQuery {
		return finish(query, p.askCluster(ctx, ask, network), full)
	}
	answer := p.cache.get(ask)
	if answer == nil {
		if answer = p.askCluster(ctx, ask, network); answer != nil {
			p.cache.put(ask, answer)
		}
	}
	return finish(query, answer, full)
}

// known answers from the watched records. ok is false when they do not suffice.
func (p *Proxy) known(query *dns.Msg, full string) (records.Answer, bool) {
	q := query.Question[0]
	if query.Opcode != dns.OpcodeQuery {
		return records.Answer{}, false
	}
	a, ok := p.config.Names.Answer(dns.Question{Name: full, Qtype: q.Qtype, Qclass: q.Qclass})
	if ok {
		rename(a.Answer, full, q.Name)
	}
	return a, ok
}

// strip returns the query as it goes to the cluster. It drops the parts of EDNS that concern two
// neighbours only, such as sizes and cookies, and keeps the bit that asks for signatures.
func strip(query *dns.Msg, full string) *dns.Msg {
	q := query.Question[0]
	ask := new(dns.Msg)
	ask.MsgHdr = query.MsgHdr
	ask.Id = dns.Id()
	ask.Question = []dns.Question{{Name: full, Qtype: q.Qtype, Qclass: q.Qclass}}
	if query.Opcode != dns.OpcodeQuery {
		ask.Answer, ask.Ns = query.Answer, query.Ns
	}
	e := query.IsEdns0()
	return ask.SetEdns0(ednsSize, e != nil && e.Do())
}

// finish turns the answer to the complete name into the answer to the program's query. It may
// change answer.
func finish(query, answer *dns.Msg, full string) *dns.Msg {
	if answer == nil {
		return nil
	}
	answer.Question = query.Question
	rename(answer.Answer, full, query.Question[0].Name)
	answer.Extra = withoutEDNS(answer.Extra)
	return withEDNS(query, answer)
}

// reply returns the message for an answer from the watched records.
func reply(query *dns.Msg, a records.Answer) *dns.Msg {
	m := new(dns.Msg).SetRcode(query, a.Rcode)
	m.Authoritative, m.RecursionAvailable = true, true
	m.Answer, m.Ns, m.Extra = a.Answer, a.Ns, a.Extra
	return withEDNS(query, m)
}

// withEDNS adds EDNS to an answer if the query has it.
func withEDNS(query, m *dns.Msg) *dns.Msg {
	if e := query.IsEdns0(); e != nil {
		m.SetEdns0(ednsSize, e.Do())
	}
	return m
}

// withoutEDNS returns the records without the OPT pseudo-record.
func withoutEDNS(all []dns.RR) (rest []dns.RR) {
	for _, rr := range all {
		if rr.Header().Rrtype != dns.TypeOPT {
			rest = append(rest, rr)
		}
	}
	return rest
}

// rename renames the records of one name. Programs look for the name that they asked for, in the
// same case.
func rename(all []dns.RR, from, to string) {
	for _, rr := range all {
		if strings.EqualFold(rr.Header().Name, from) {
			rr.Header().Name = to
		}
	}
}

// namespace reports whether a namespace exists, and whether that is known. If the user may not list
// namespaces, it asks the cluster's DNS: CoreDNS knows the name <namespace>.svc.<domain> exactly
// when the namespace exists.
func (p *Proxy) namespace(ctx context.Context, name string) (exists, known bool) {
	if name == p.config.Namespace {
		return true, true
	}
	if !isLabel(name) {
		return false, true
	}
	if exists, known = p.config.Names.Namespace(name); known {
		return exists, true
	}
	p.mu.Lock()
	entry, ok := p.namespaces[name]
	p.mu.Unlock()
	if ok && p.config.now().Before(entry.until) || !p.config.Alive() {
		return entry.exists, entry.known
	}
	ctx, cancel := halfOf(ctx)
	defer cancel()
	answer := p.askCluster(ctx, new(dns.Msg).SetQuestion(name+".svc"+p.domain, dns.TypeA), "udp")
	if answer != nil && answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return false, false // a failure is not remembered
	}
	now := p.config.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if answer != nil {
		entry = namespaceEntry{exists: answer.Rcode == dns.RcodeSuccess, known: true, until: now.Add(namespaceTTL)}
	} else if entry = p.namespaces[name]; !now.Before(entry.until) { // an older answer is the best guess
		entry.until = now.Add(silenceTTL)
	}
	if len(p.namespaces) >= maxNamespaces {
		clear(p.namespaces)
	}
	p.namespaces[name] = entry
	return entry.exists, entry.known
}

// isLabel reports whether a namespace can have this name (RFC 1123).
func isLabel(name string) bool {
	if name == "" || len(name) > 63 || name[0] == '-' || name[len(name)-1] == '-' {
		return false
	}
	for _, c := range []byte(name) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}
