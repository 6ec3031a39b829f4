// Package dnsproxy is the laptop's split DNS. It answers the cluster's names from watched Services
// and EndpointSlices, or asks the cluster's DNS through the VIF. It asks the laptop's previous
// resolvers for all other names. Start with Start, and with System for the laptop's own settings.
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
	// ednsSize is the size of messages, in bytes, that the proxy offers and asks for over UDP. It
	// passes every link without fragmentation (DNS flag day 2020). Larger answers use TCP.
	ednsSize = 1232
)

// Names answers what the laptop knows of the cluster's names without asking the cluster's DNS.
type Names interface {
	// Answer answers for a complete name. ok is false when the cluster's DNS must be asked.
	Answer(q dns.Question) (a records.Answer, ok bool)
	// Namespace reports whether a namespace exists, and whether that is known.
	Namespace(name string) (exists, known bool)
}

// Network is the network in which the proxy listens and asks the cluster. Nil functions mean the
// network of this process. The proxy always asks the previous resolvers from the network of this
// process.
type Network struct {
	Listen       func(network, address string) (net.Listener, error)
	ListenPacket func(network, address string) (net.PacketConn, error)
	Dial         func(ctx context.Context, network, address string) (net.Conn, error)
}

// Config describes a Proxy.
type Config struct {
	Listen    netip.AddrPort
	Network   Network
	Cluster   []string // host:port of the cluster's DNS
	Domain    string   // "cluster.local"
	Namespace string   // in which the proxy looks up single labels
	Upstream  []string // host:port of the previous resolvers
	Rules     Rules
	Names     Names // may be nil: then the cluster's DNS is asked for every name
	// Alive reports whether the tunnel to the cluster is alive. While it is not, the proxy does not
	// ask the cluster's DNS. A nil Alive means always.
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
	upstream atomic.Pointer[[]string] // the previous resolvers, host:port

	// mu guards the fields below.
	mu         sync.Mutex
	namespaces map[string]namespaceEntry
}

// Start listens and answers until Close. The caller owns the Proxy. After an error nothing is left
// open.
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
		c.Names = noNames{}
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

// noNames are the Names of a laptop that may watch nothing.
type noNames struct{}

func (noNames) Answer(dns.Question) (records.Answer, bool) { return records.Answer{}, false }
func (noNames) Namespace(string) (exists, known bool)      { return false, false }

// Addr returns the address on which the proxy listens.
func (p *Proxy) Addr() netip.AddrPort {
	return p.servers[0].PacketConn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// SetUpstream sets the resolvers, as host:port, for names that are not the cluster's.
func (p *Proxy) SetUpstream(all []string) { p.upstream.Store(&all) }

// Close stops answering, and waits for the queries that are being answered.
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
		p.config.Log.Debug("sending a DNS answer failed", "err", err)
	}
}

// servers are DNS servers that are reached from one network.
type servers struct {
	addresses []string
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
}

// askCluster asks the cluster's DNS. It returns nil at once when the tunnel is not alive.
func (p *Proxy) askCluster(ctx context.Context, query *dns.Msg, network string) *dns.Msg {
	if !p.config.Alive() {
		return nil
	}
	return p.exchange(ctx, query, servers{addresses: p.config.Cluster, dial: p.config.Network.Dial}, network)
}

// askUpstream asks the previous resolvers.
func (p *Proxy) askUpstream(ctx context.Context, query *dns.Msg, network string) *dns.Msg {
	return p.exchange(ctx, query, servers{addresses: *p.upstream.Load(), dial: new(net.Dialer).DialContext}, network)
}

// exchange asks servers in turn and returns the first answer, or nil when no server answers. After
// SERVFAIL and REFUSED it asks the next server, as the C library does.
func (p *Proxy) exchange(ctx context.Context, query *dns.Msg, of servers, network string) *dns.Msg {
	var last *dns.Msg
	for i, s := range of.addresses {
		answer, err := of.ask(ctx, query, s, network, len(of.addresses)-i)
		if err != nil {
			p.config.Log.Debug("asking a DNS server failed", "server", s, "err", err)
			continue
		}
		if answer.Rcode != dns.RcodeServerFailure && answer.Rcode != dns.RcodeRefused {
			return answer
		}
		last = answer
	}
	return last
}

// ask asks one server, by TCP too when the answer over UDP is truncated. remaining is how many
// servers there are to ask, this one included: each gets an equal share of the time.
func (s servers) ask(ctx context.Context, query *dns.Msg, server, network string, remaining int) (*dns.Msg, error) {
	deadline, _ := ctx.Deadline()
	ctx, cancel := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(remaining))
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
