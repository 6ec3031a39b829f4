// Package dnsproxy is the laptop's split DNS: the cluster's names are asked of the cluster's DNS through the VIF, all others of the
// resolver that was there before.
package dnsproxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	exchangeTimeout = 4 * time.Second
	// namespaceTTL is how long it is remembered whether a namespace exists.
	namespaceTTL = 30 * time.Second
)

// Config says whom to ask what.
type Config struct {
	Listen    netip.AddrPort
	Cluster   []string // host:port of the cluster's DNS
	Domain    string   // "cluster.local"
	Namespace string   // where single names are looked up
	Subnets   []netip.Prefix
	Upstream  []string // host:port of the previous resolvers
	Log       *slog.Logger
}

// Proxy answers on UDP and TCP until it is closed.
type Proxy struct {
	config  Config
	servers []*dns.Server
	done    sync.WaitGroup

	mu         sync.Mutex
	namespaces map[string]namespaceEntry
}

type namespaceEntry struct {
	exists bool
	until  time.Time
}

// Start listens. Close ends it.
func Start(c Config) (*Proxy, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	p := &Proxy{config: c, namespaces: map[string]namespaceEntry{}}
	packet, err := net.ListenPacket("udp", c.Listen.String())
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	stream, err := net.Listen("tcp", packet.LocalAddr().String())
	if err != nil {
		_ = packet.Close()
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	p.servers = []*dns.Server{{PacketConn: packet, Handler: p}, {Listener: stream, Handler: p}}
	for _, s := range p.servers {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		p.done.Go(func() { _ = s.ActivateAndServe() })
		<-started
	}
	return p, nil
}

// Addr is where it listens.
func (p *Proxy) Addr() netip.AddrPort {
	return p.servers[0].PacketConn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// Close stops answering and waits for what is under way.
func (p *Proxy) Close() error {
	var all []error
	for _, s := range p.servers {
		all = append(all, s.Shutdown())
	}
	p.done.Wait()
	return errors.Join(all...)
}

// ServeDNS implements dns.Handler.
func (p *Proxy) ServeDNS(w dns.ResponseWriter, query *dns.Msg) {
	ctx, cancel := context.WithTimeout(context.Background(), exchangeTimeout)
	defer cancel()
	network := w.RemoteAddr().Network()
	answer := p.answer(ctx, query, network)
	if answer == nil {
		answer = new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
	}
	answer.Id = query.Id
	if network == "udp" {
		size := dns.MinMsgSize
		if e := query.IsEdns0(); e != nil {
			size = int(e.UDPSize())
		}
		answer.Truncate(size)
	}
	if err := w.WriteMsg(answer); err != nil {
		p.config.Log.Debug("a DNS answer could not be sent", "err", err)
	}
}

func (p *Proxy) answer(ctx context.Context, query *dns.Msg, network string) *dns.Msg {
	if len(query.Question) != 1 {
		return new(dns.Msg).SetRcode(query, dns.RcodeFormatError)
	}
	asked := query.Question[0].Name
	full, cluster := p.clusterName(ctx, asked)
	if !cluster {
		return p.exchange(ctx, query, p.config.Upstream, network)
	}
	if strings.EqualFold(full, asked) {
		return p.exchange(ctx, query, p.config.Cluster, network)
	}
	renamed := query.Copy()
	renamed.Question[0].Name = full
	answer := p.exchange(ctx, renamed, p.config.Cluster, network)
	if answer == nil {
		return nil
	}
	if answer.Rcode == dns.RcodeNameError && dns.CountLabel(asked) == 1 {
		return p.exchange(ctx, query, p.config.Upstream, network)
	}
	answer.Question = query.Question
	for _, rr := range answer.Answer {
		if strings.EqualFold(rr.Header().Name, full) {
			rr.Header().Name = asked
		}
	}
	return answer
}

// clusterName is the full name under which the cluster knows name, if it is the cluster's: *.cluster.local, *.svc, names in
// an existing namespace, single names, and the addresses of its networks.
func (p *Proxy) clusterName(ctx context.Context, name string) (full string, cluster bool) {
	lower := strings.ToLower(dns.Fqdn(name))
	domain := "." + strings.ToLower(dns.Fqdn(p.config.Domain))
	labels := dns.SplitDomainName(lower)
	switch {
	case strings.HasSuffix(lower, domain):
		return lower, true
	case strings.HasSuffix(lower, ".in-addr.arpa.") || strings.HasSuffix(lower, ".ip6.arpa."):
		return lower, p.ours(lower)
	case strings.HasSuffix(lower, ".svc."):
		return strings.TrimSuffix(lower, ".") + domain, true
	case len(labels) == 1:
		return labels[0] + "." + p.config.Namespace + ".svc" + domain, true
	case len(labels) >= 2 && len(labels) <= 3 && p.namespaceExists(ctx, labels[len(labels)-1]):
		return strings.TrimSuffix(lower, ".") + ".svc" + domain, true
	}
	return lower, false
}

// ours says whether a reverse name is of an address behind the VIF.
func (p *Proxy) ours(reverse string) bool {
	labels := dns.SplitDomainName(reverse)
	var address netip.Addr
	if strings.HasSuffix(reverse, ".in-addr.arpa.") && len(labels) == 6 {
		address, _ = netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
	} else if len(labels) == 34 {
		var b strings.Builder
		for i := 31; i >= 0; i-- {
			b.WriteString(labels[i])
			if i%4 == 0 && i > 0 {
				b.WriteByte(':')
			}
		}
		address, _ = netip.ParseAddr(b.String())
	}
	for _, s := range p.config.Subnets {
		if address.IsValid() && s.Contains(address) {
			return true
		}
	}
	return false
}

// namespaceExists asks the cluster's DNS: CoreDNS knows the name <namespace>.svc.<domain> exactly when the namespace exists.
func (p *Proxy) namespaceExists(ctx context.Context, namespace string) bool {
	p.mu.Lock()
	entry, ok := p.namespaces[namespace]
	p.mu.Unlock()
	if ok && time.Now().Before(entry.until) {
		return entry.exists
	}
	// Half of the time is for the name itself.
	ctx, cancel := context.WithTimeout(ctx, exchangeTimeout/2)
	defer cancel()
	query := new(dns.Msg).SetQuestion(namespace+".svc."+dns.Fqdn(p.config.Domain), dns.TypeA)
	answer := p.exchange(ctx, query, p.config.Cluster, "udp")
	if answer == nil || (answer.Rcode != dns.RcodeSuccess && answer.Rcode != dns.RcodeNameError) {
		return false // it is not known, and asked again
	}
	exists := answer.Rcode == dns.RcodeSuccess
	p.mu.Lock()
	if len(p.namespaces) > 10000 {
		clear(p.namespaces)
	}
	p.namespaces[namespace] = namespaceEntry{exists, time.Now().Add(namespaceTTL)}
	p.mu.Unlock()
	return exists
}

// exchange asks servers in turn and returns the first answer, or nil. One that cannot or does not want to answer is not the
// last word, as it is not for the C library.
func (p *Proxy) exchange(ctx context.Context, query *dns.Msg, servers []string, network string) *dns.Msg {
	var last *dns.Msg
	for i, s := range servers {
		answer, err := ask(ctx, query, s, network, len(servers)-i)
		if err != nil {
			p.config.Log.Debug("a DNS server did not answer", "server", s, "err", err)
			continue
		}
		if answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused {
			return answer
		}
		last = answer
	}
	return last
}

// ask asks one server, and leaves those after it their share of the time.
func ask(ctx context.Context, query *dns.Msg, server, network string, left int) (*dns.Msg, error) {
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
	defer cancel()
	client := &dns.Client{Net: network, Timeout: exchangeTimeout}
	answer, _, err := client.ExchangeContext(ctx, query, server)
	if err == nil && answer.Truncated && network == "udp" {
		client.Net = "tcp"
		if whole, _, terr := client.ExchangeContext(ctx, query, server); terr == nil {
			answer = whole
		}
	}
	return answer, err
}
