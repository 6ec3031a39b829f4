package dnsproxy

import (
	"context"
	"strings"
	"time"

	"github.com/miekg/dns"

	"github.com/detour-dev/detour/pkg/dnsproxy/records"
)

const (
	// namespaceTTL is how long it is remembered whether a namespace exists.
	namespaceTTL = 30 * time.Second
	// silenceTTL is how long the cluster's DNS is not asked for a namespace again that it said nothing of.
	silenceTTL = 3 * time.Second
	// maxNamespaces bounds what is remembered.
	maxNamespaces = 10000
	// ndots is that of a pod: a name with fewer dots is first looked for along the search path.
	ndots = 5
)

type namespaceEntry struct {
	exists, known bool
	until         time.Time
}

// answer finds who knows the name. A name may be a part of one: it is looked for where a pod of the namespace would look, in the same
// order, here and not in the program's resolver, because that one may have other options, and would ask for each name of the
// internet with the cluster's suffixes first.
func (p *Proxy) answer(ctx context.Context, query *dns.Msg, network string) *dns.Msg {
	if len(query.Question) != 1 {
		return new(dns.Msg).SetRcode(query, dns.RcodeFormatError)
	}
	name := strings.ToLower(dns.Fqdn(query.Question[0].Name))
	if query.Opcode != dns.OpcodeQuery {
		return p.unruled(ctx, query, name, network)
	}
	if target, ok := p.mapped(name); ok {
		return p.mappedTo(ctx, query, target, network)
	}
	return p.ruled(ctx, query, name, network)
}

// unruled finds who knows a name that no rule is about.
func (p *Proxy) unruled(ctx context.Context, query *dns.Msg, name, network string) *dns.Msg {
	switch {
	case strings.HasSuffix(name, p.domain):
		return p.inDomain(ctx, query, query.Question[0].Name, network)
	case strings.Contains(name, p.domain):
		// What the search path that the laptop had before makes of a name of the cluster's: the office's resolver need not know it.
		return withEDNS(query, new(dns.Msg).SetRcode(query, dns.RcodeNameError))
	case strings.HasSuffix(name, ".arpa."):
		if full, ok := p.ours(name); ok {
			return p.inCluster(ctx, query, full, network)
		}
	case strings.HasSuffix(name, ".svc."):
		return p.inDomain(ctx, query, strings.TrimSuffix(name, ".")+p.domain, network)
	default:
		if full := p.search(ctx, query, name); full != "" {
			return p.first(ctx, query, full, network)
		}
	}
	return p.exchange(ctx, query, p.upstream(), network)
}

// first looks for a name in the cluster and then outside. A cluster that says nothing does not keep the office's hosts away, but that
// nobody outside has heard of a name does not say that it is not in the cluster.
func (p *Proxy) first(ctx context.Context, query *dns.Msg, full, network string) *dns.Msg {
	part, cancel := half(ctx)
	answer := p.inCluster(part, query, full, network)
	cancel()
	if answer != nil && answer.Rcode != dns.RcodeNameError {
		return answer
	}
	silent := answer == nil
	if answer = p.exchange(ctx, query, p.upstream(), network); silent && answer != nil && answer.Rcode == dns.RcodeNameError {
		return nil
	}
	return answer
}

// half of the time is left for what comes after.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, _ := ctx.Deadline()
	return context.WithTimeout(ctx, time.Until(deadline)/2)
}

// search finds the whole name that a name may stand for in the cluster, if any: first in the connected namespace, then in the one that is its
// last part. Names of the internet must not be told to the cluster, so that with two labels and more the first is only for
// what is known here, and the second only for namespaces that exist.
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
	// port.protocol.service.namespace is as long as it gets.
	if len(labels) > 4 || len(labels) == 4 && !strings.HasPrefix(name, "_") {
		return ""
	}
	if exists, _ := p.namespace(ctx, labels[len(labels)-1]); exists {
		return base + ".svc" + p.domain
	}
	return ""
}

// inDomain answers for a name under the cluster's domain. A program's search path makes such names of any name (www.example.com.svc.cluster.local),
// and what cannot be there is not asked of the cluster.
func (p *Proxy) inDomain(ctx context.Context, query *dns.Msg, full, network string) *dns.Msg {
	domain := full[len(full)-len(p.domain)+1:]
	labels := dns.SplitDomainName(strings.ToLower(full[:len(full)-len(p.domain)]))
	last := len(labels) - 1
	switch {
	case last < 1:
		// The cluster's administrator may have added names of their own.
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

// inCluster answers a question for a name that is whole.
func (p *Proxy) inCluster(ctx context.Context, query *dns.Msg, full, network string) *dns.Msg {
	return p.seen(p.fromCluster(ctx, query, full, network))
}

// fromCluster answers from what is known here, from what was asked before, or by asking.
func (p *Proxy) fromCluster(ctx context.Context, query *dns.Msg, full, network string) *dns.Msg {
	if e := query.IsEdns0(); e != nil && e.Version() != 0 {
		// The one thing of EDNS that may not be passed on: what a later version means is not known here (RFC 6891).
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

// known answers from what is known here.
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

// strip is the question as it goes to the cluster. What of EDNS is between two neighbours (sizes, cookies) is not passed on; whether
// signatures are wanted is.
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

// finish makes an answer to one question that to another: the one as the program asked it. It may change answer.
func finish(query, answer *dns.Msg, full string) *dns.Msg {
	if answer == nil {
		return nil
	}
	answer.Question = query.Question
	rename(answer.Answer, full, query.Question[0].Name)
	answer.Extra = withoutEDNS(answer.Extra)
	return withEDNS(query, answer)
}

// reply is the message for what is known here.
func reply(query *dns.Msg, a records.Answer) *dns.Msg {
	m := new(dns.Msg).SetRcode(query, a.Rcode)
	m.Authoritative, m.RecursionAvailable = true, true
	m.Answer, m.Ns, m.Extra = a.Answer, a.Ns, a.Extra
	return withEDNS(query, m)
}

// withEDNS tells a program that understands EDNS that the proxy does too.
func withEDNS(query, m *dns.Msg) *dns.Msg {
	if e := query.IsEdns0(); e != nil {
		m.SetEdns0(ednsSize, e.Do())
	}
	return m
}

func withoutEDNS(all []dns.RR) (rest []dns.RR) {
	for _, rr := range all {
		if rr.Header().Rrtype != dns.TypeOPT {
			rest = append(rest, rr)
		}
	}
	return rest
}

// rename gives records of a name another one: a program looks for the name that it asked, letter by letter.
func rename(all []dns.RR, from, to string) {
	for _, rr := range all {
		if strings.EqualFold(rr.Header().Name, from) {
			rr.Header().Name = to
		}
	}
}

// namespace says whether a namespace exists, and whether that is known. Where the user may not list namespaces the cluster's DNS is
// asked: CoreDNS knows the name <namespace>.svc.<domain> exactly when the namespace exists.
func (p *Proxy) namespace(ctx context.Context, name string) (exists, known bool) {
	if name == p.config.Namespace {
		return true, true
	}
	if !label(name) {
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
	ctx, cancel := half(ctx)
	defer cancel()
	answer := p.askCluster(ctx, new(dns.Msg).SetQuestion(name+".svc"+p.domain, dns.TypeA), "udp")
	if answer != nil && answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError {
		return false, false // it is asked again
	}
	now := p.config.now()
	p.mu.Lock()
	defer p.mu.Unlock()
	if answer != nil {
		entry = namespaceEntry{answer.Rcode == dns.RcodeSuccess, true, now.Add(namespaceTTL)}
	} else if entry = p.namespaces[name]; !now.Before(entry.until) { // what was known before is still the best guess
		entry.until = now.Add(silenceTTL)
	}
	if len(p.namespaces) >= maxNamespaces {
		clear(p.namespaces)
	}
	p.namespaces[name] = entry
	return entry.exists, entry.known
}

// label says whether a namespace can have a name (RFC 1123).
func label(name string) bool {
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
