package dnsproxy

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a real DNS server on loopback, UDP and TCP on one port, which remembers what it was
// asked.
type server struct {
	address string

	mu    sync.Mutex
	asked []string // "udp example.com. A"
}

func newServer(t testing.TB, answer func(network string, q *dns.Msg) *dns.Msg) *server {
	stream, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	packet, err := net.ListenPacket("udp", stream.Addr().String())
	require.NoError(t, err)
	s := &server{address: packet.LocalAddr().String()}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		network := w.RemoteAddr().Network()
		s.mu.Lock()
		s.asked = append(s.asked, network+" "+q.Question[0].Name+" "+dns.Type(q.Question[0].Qtype).String())
		s.mu.Unlock()
		if m := answer(network, q); m != nil {
			_ = w.WriteMsg(m)
		}
	})
	for _, d := range []*dns.Server{{PacketConn: packet, Handler: handler}, {Listener: stream, Handler: handler}} {
		started := make(chan struct{})
		d.NotifyStartedFunc = func() { close(started) }
		go func() { _ = d.ActivateAndServe() }()
		<-started
		t.Cleanup(func() { _ = d.Shutdown() })
	}
	return s
}

func (s *server) questions() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// wasAsked says how often a name was, whatever the network and the type.
func (s *server) wasAsked(name string) (times int) {
	for _, a := range s.questions() {
		if strings.EqualFold(strings.Fields(a)[1], name) {
			times++
		}
	}
	return times
}

// zone answers from records: NXDOMAIN for a name it has none of, an empty answer for another type
// of one it has.
func zone(t testing.TB, names map[string]string) func(string, *dns.Msg) *dns.Msg {
	records := map[string][]dns.RR{}
	for name, data := range names {
		records[name] = nil
		if data != "" {
			rr, err := dns.NewRR(name + " 30 IN " + data)
			require.NoError(t, err)
			records[name] = append(records[name], rr)
		}
	}
	return func(_ string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		all, known := records[strings.ToLower(q.Question[0].Name)]
		if !known {
			return m.SetRcode(q, dns.RcodeNameError)
		}
		for _, rr := range all {
			if rr.Header().Rrtype == q.Question[0].Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
		return m
	}
}

// newCluster answers as CoreDNS does for namespace shop.
func newCluster(t testing.TB) *server {
	return newServer(t, zone(t, map[string]string{
		"svc.cluster.local.":                                  "",
		"10-42-0-9.shop.pod.cluster.local.":                   "A 10.42.0.9",
		"registry.cluster.local.":                             "A 10.96.0.77",
		"ns.dns.cluster.local.":                               "A 10.96.0.10",
		"shop.svc.cluster.local.":                             "",
		"catalog.shop.svc.cluster.local.":                     "A 10.96.0.5",
		"db-0.db.shop.svc.cluster.local.":                     "A 10.42.0.9",
		"_http._tcp.web.shop.svc.cluster.local.":              "SRV 0 100 80 web.shop.svc.cluster.local.",
		"kubernetes.default.svc.cluster.local.":               "A 10.96.0.1",
		"default.svc.cluster.local.":                          "",
		"5.0.96.10.in-addr.arpa.":                             "PTR catalog.shop.svc.cluster.local.",
		"5." + strings.Repeat("0.", 27) + "0.0.d.f.ip6.arpa.": "PTR catalog.shop.svc.cluster.local.",
	}))
}

// newUpstream answers as the resolver of an office does.
func newUpstream(t testing.TB) *server {
	return newServer(t, zone(t, map[string]string{
		".":                     "NS a.root-servers.net.",
		"example.com.":          "A 192.0.2.1",
		"www.shop.example.com.": "A 192.0.2.2",
		"go.shop.":              "A 192.0.2.3",
		"intranet.":             "A 192.168.1.1",
		"catalog.":              "A 192.168.1.2",
		"cluster.local.":        "A 192.168.1.3",
		"8.8.8.8.in-addr.arpa.": "PTR dns.google.",
		"10.in-addr.arpa.":      "NS ns.office.",
		"1." + strings.Repeat("0.", 23) + "8.b.d.0.1.0.0.2.ip6.arpa.": "PTR doc.example.com.",
	}))
}

func start(t testing.TB, cluster, upstream []string) *Proxy {
	return startWith(t, Config{Cluster: cluster, Upstream: upstream})
}

// startWith adds to a configuration what is the same in each test.
func startWith(t testing.TB, c Config) *Proxy {
	c.Listen, c.Domain, c.Namespace = netip.MustParseAddrPort("127.0.0.1:0"), "cluster.local", "shop"
	p, err := Start(c)
	for range 10 { // the UDP port that the kernel chose may be taken for TCP
		if err == nil {
			break
		}
		p, err = Start(c)
	}
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, p.Close()) })
	p.SetNetworks([]netip.Prefix{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParsePrefix("fd00::/64")}, nil)
	return p
}

// resolve asks the proxy as a program does.
func resolve(t testing.TB, p *Proxy, network, name string, kind uint16) *dns.Msg {
	q := new(dns.Msg).SetQuestion(name, kind)
	c := &dns.Client{Net: network, Timeout: time.Minute}
	answer, _, err := c.Exchange(q, p.Addr().String())
	require.NoError(t, err)
	require.Equal(t, q.Question, answer.Question)
	return answer
}

// silent is the address of a server that never answers, as one behind a dead tunnel.
func silent(t testing.TB) string {
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = packet.Close() })
	return packet.LocalAddr().String()
}

// dead is an address on which nothing listens.
func dead(t testing.TB) string {
	packet, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer packet.Close()
	return packet.LocalAddr().String()
}
