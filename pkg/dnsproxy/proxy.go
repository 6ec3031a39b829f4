// Package dnsproxy is the laptop's split DNS: the cluster's names are answered from what is known of them here, or asked of the
// cluster's DNS through the VIF; all others are asked of the resolver that was there before.
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
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/detour-dev/detour/pkg/dnsproxy/records"
)

const (
	exchangeTimeout = 4 * time.Second
	// ednsSize is what is asked for and offered over UDP: what passes any link unfragmented (DNS flag day 2020). More comes over TCP.
	ednsSize = 1232
)

// Names is what is known of the cluster's names without asking its DNS.
type Names interface {
	// Answer answers for a whole name; ok is false when the cluster's DNS must be asked.
	Answer(q dns.Question) (a records.Answer, ok bool)
	// Namespace says whether a namespace exists, if that is known.
	Namespace(name string) (exists, known bool)
}

// Network is where the proxy listens and from where it asks the cluster; nil functions mean the network of this process. The
// previous resolvers are asked from this process's network in any case.
type Network struct {
	Listen       func(network, address string) (net.Listener, error)
	ListenPacket func(network, address string) (net.PacketConn, error)
	Dial         func(ctx context.Context, network, address string) (net.Conn, error)
}

// Config says whom to ask what.
type Config struct {
	Listen    netip.AddrPort
	Network   Network
	Cluster   []string // host:port of the cluster's DNS
	Domain    string   // "cluster.local"
	Namespace string   // where single names are looked up
	Upstream  []string // host:port of the previous resolvers
	Rules     Rules
	Names     Names // may be nil: then all is asked
	// Alive says whether the cluster was heard lately; while it was not, its DNS is not waited for. nil is always.
	Alive func() bool
	Log   *slog.Logger

	now func() time.Time // nil for time.Now
}

// Proxy answers on UDP and TCP until it is closed.
type Proxy struct {
	config  Config
	domain  string // ".cluster.local."
	servers []*dns.Server
	done    sync.WaitGroup
	cache   cache

	networks atomic.Pointer[networks]
	others   atomic.Pointer[[]string] // the resolvers besides the proxy

	mu         sync.Mutex
	namespaces map[string]namespaceEntry
}

// Start listens. Close ends it.
func Start(c Config) (*Proxy, error) {
	p := newProxy(c)
	packet, err := p.config.Network.ListenPacket("udp", c.Listen.String())
	if err != nil {
		return nil, fmt.Errorf("listen for DNS: %w", err)
	}
	stream, err := p.config.Network.Listen("tcp", packet.LocalAddr().String())
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

func newProxy(c Config) *Proxy {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Network.Listen == nil {
		c.Network = Network{Listen: net.Listen, ListenPacket: net.ListenPacket, Dial: new(net.Dialer).DialContext}
	}
	if c.Names == nil {
		c.Names = nothing{}
	}
	if c.Alive == nil {
		c.Alive = func() bool { return true }
	}
	if c.now == nil {
		c.now = time.Now
	}
	p := &Proxy{config: c, domain: "." + strings.ToLower(dns.Fqdn(c.Domain)), namespaces: map[string]namespaceEntry{}}
	p.SetNetworks(nil, nil)
	p.SetUpstream(c.Upstream)
	return p
}

// nothing is what is known where nothing may be watched.
type nothing struct{}

func (nothing) Answer(dns.Question) (records.Answer, bool) { return records.Answer{}, false }
func (nothing) Namespace(string) (exists bool, known bool) { return false, false }

// Addr is where it listens.
func (p *Proxy) Addr() netip.AddrPort {
	return p.servers[0].PacketConn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// SetUpstream says whom to ask for what is not the cluster's, as host:port.
func (p *Proxy) SetUpstream(all []string) { p.others.Store(&all) }

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
			size = max(size, int(e.UDPSize()))
		}
		answer.Truncate(size)
	}
	if err := w.WriteMsg(answer); err != nil {
		p.config.Log.Debug("a DNS answer could not be sent", "err", err)
	}
}

// servers are asked in turn, from one network.
type servers struct {
	addresses []string
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
}

// askCluster asks the cluster's DNS, unless nothing can come of that.
func (p *Proxy) askCluster(ctx context.Context, query *dns.Msg, network string) *dns.Msg {
	if !p.config.Alive() {
		return nil
	}
	return p.exchange(ctx, query, servers{p.config.Cluster, p.config.Network.Dial}, network)
}

func (p *Proxy) upstream() servers {
	return servers{*p.others.Load(), new(net.Dialer).DialContext}
}

// exchange asks servers in turn and returns the first answer, or nil. One that cannot or does not want to answer is not the
// last word, as it is not for the C library.
func (p *Proxy) exchange(ctx context.Context, query *dns.Msg, of servers, network string) *dns.Msg {
	var last *dns.Msg
	for i, s := range of.addresses {
		answer, err := of.ask(ctx, query, s, network, len(of.addresses)-i)
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
func (s servers) ask(ctx context.Context, query *dns.Msg, server, network string, left int) (*dns.Msg, error) {
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
	defer cancel()
	answer, err := s.once(ctx, query, server, network)
	if err == nil && answer.Truncated && network == "udp" {
		if whole, terr := s.once(ctx, query, server, "tcp"); terr == nil {
			answer = whole
		}
	}
	return answer, err
}

func (s servers) once(ctx context.Context, query *dns.Msg, server, network string) (*dns.Msg, error) {
	c, err := s.dial(ctx, network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	client := &dns.Client{Net: network, Timeout: exchangeTimeout}
	answer, _, err := client.ExchangeWithConnContext(ctx, query, &dns.Conn{Conn: c})
	return answer, err
}
