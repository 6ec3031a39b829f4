package dnsproxy

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The cluster is asked for its own names in each of the forms that a pod in the namespace could
// use, and the resolver of before for all others.
func TestSplit(t *testing.T) {
	const cluster, upstream = "cluster", "upstream"
	for _, c := range []struct {
		name   string
		kind   uint16
		want   string // data of the answer
		rcode  int
		by     string // who gave the answer
		asked  string // the name that server was asked
		secret bool   // the other server must not learn the name
	}{
		{"catalog.", dns.TypeA, "10.96.0.5", 0, cluster, "catalog.shop.svc.cluster.local.", true},
		{"catalog.shop.", dns.TypeA, "10.96.0.5", 0, cluster, "catalog.shop.svc.cluster.local.", true},
		{"catalog.shop.svc.", dns.TypeA, "10.96.0.5", 0, cluster, "catalog.shop.svc.cluster.local.", true},
		{
			name:   "catalog.shop.svc.cluster.local.",
			kind:   dns.TypeA,
			want:   "10.96.0.5",
			by:     cluster,
			asked:  "catalog.shop.svc.cluster.local.",
			secret: true,
		},
		{"kubernetes.default.", dns.TypeA, "10.96.0.1", 0, cluster, "kubernetes.default.svc.cluster.local.", true},
		{"db-0.db.shop.", dns.TypeA, "10.42.0.9", 0, cluster, "db-0.db.shop.svc.cluster.local.", true},
		{"CataLog.SHOP.", dns.TypeA, "10.96.0.5", 0, cluster, "catalog.shop.svc.cluster.local.", true},
		{
			name:   "_http._tcp.web.shop.svc.",
			kind:   dns.TypeSRV,
			want:   "0 100 80 web.shop.svc.cluster.local.",
			by:     cluster,
			asked:  "_http._tcp.web.shop.svc.cluster.local.",
			secret: true,
		},
		// there, but not of this type
		{"catalog.", dns.TypeAAAA, "", 0, cluster, "catalog.shop.svc.cluster.local.", true},
		{
			name:   "_http._tcp.web.shop.",
			kind:   dns.TypeSRV,
			want:   "0 100 80 web.shop.svc.cluster.local.",
			by:     cluster,
			asked:  "_http._tcp.web.shop.svc.cluster.local.",
			secret: true,
		},
		{"absent.shop.svc.", dns.TypeA, "", dns.RcodeNameError, cluster, "absent.shop.svc.cluster.local.", true},
		// As in a pod the search goes on: a namespace may be called like a part of the internet.
		{"absent.shop.", dns.TypeA, "", dns.RcodeNameError, upstream, "absent.shop.", false},
		{"go.shop.", dns.TypeA, "192.0.2.3", 0, upstream, "go.shop.", false},
		// Only whether the namespace is there is asked.
		{"absent.nowhere.svc.", dns.TypeA, "", dns.RcodeNameError, cluster, "nowhere.svc.cluster.local.", true},
		{
			name:   "10-42-0-9.shop.pod.cluster.local.",
			kind:   dns.TypeA,
			want:   "10.42.0.9",
			by:     cluster,
			asked:  "10-42-0-9.shop.pod.cluster.local.",
			secret: true,
		},
		{"svc.cluster.local.", dns.TypeA, "", 0, cluster, "svc.cluster.local.", true},
		// an administrator's own
		{"registry.cluster.local.", dns.TypeA, "10.96.0.77", 0, cluster, "registry.cluster.local.", true},
		{"ns.dns.cluster.local.", dns.TypeA, "10.96.0.10", 0, cluster, "ns.dns.cluster.local.", true},

		{"example.com.", dns.TypeA, "192.0.2.1", 0, upstream, "example.com.", true},
		{"www.shop.example.com.", dns.TypeA, "192.0.2.2", 0, upstream, "www.shop.example.com.", true},
		{"absent.example.com.", dns.TypeA, "", dns.RcodeNameError, upstream, "absent.example.com.", true},
		// the name itself is nobody's service
		{"cluster.local.", dns.TypeA, "192.168.1.3", 0, upstream, "cluster.local.", true},
		{".", dns.TypeNS, "a.root-servers.net.", 0, upstream, ".", true},

		// A name of one label may be a service or a host of the office: the cluster comes first.
		{"intranet.", dns.TypeA, "192.168.1.1", 0, upstream, "intranet.", false},
		{"absent.", dns.TypeA, "", dns.RcodeNameError, upstream, "absent.", false},

		{
			name:   "5.0.96.10.in-addr.arpa.",
			kind:   dns.TypePTR,
			want:   "catalog.shop.svc.cluster.local.",
			by:     cluster,
			asked:  "5.0.96.10.in-addr.arpa.",
			secret: true,
		},
		{"6.0.96.10.in-addr.arpa.", dns.TypePTR, "", dns.RcodeNameError, cluster, "6.0.96.10.in-addr.arpa.", true},
		{"8.8.8.8.in-addr.arpa.", dns.TypePTR, "dns.google.", 0, upstream, "8.8.8.8.in-addr.arpa.", true},
		{"10.in-addr.arpa.", dns.TypeNS, "ns.office.", 0, upstream, "10.in-addr.arpa.", true},
		{
			name:   "5." + strings.Repeat("0.", 27) + "0.0.d.f.ip6.arpa.",
			kind:   dns.TypePTR,
			want:   "catalog.shop.svc.cluster.local.",
			by:     cluster,
			asked:  "5." + strings.Repeat("0.", 27) + "0.0.d.f.ip6.arpa.",
			secret: true,
		},
		{
			name:   "1." + strings.Repeat("0.", 23) + "8.b.d.0.1.0.0.2.ip6.arpa.",
			kind:   dns.TypePTR,
			want:   "doc.example.com.",
			by:     upstream,
			asked:  "1." + strings.Repeat("0.", 23) + "8.b.d.0.1.0.0.2.ip6.arpa.",
			secret: true,
		},
	} {
		for _, network := range []string{"udp", "tcp"} {
			t.Run(fmt.Sprintf("%s %s over %s", c.name, dns.Type(c.kind), network), func(t *testing.T) {
				servers := map[string]*server{cluster: newCluster(t), upstream: newUpstream(t)}
				p := start(t, []string{servers[cluster].address}, []string{servers[upstream].address})
				answer := resolve(t, p, network, c.name, c.kind)
				assert.Equal(t, dns.RcodeToString[c.rcode], dns.RcodeToString[answer.Rcode])
				if c.want == "" {
					assert.Empty(t, answer.Answer)
				} else if assert.Len(t, answer.Answer, 1) {
					assert.Equal(t, c.want,
						strings.TrimPrefix(answer.Answer[0].String(), answer.Answer[0].Header().String()))
					assert.Equal(t, c.name, answer.Answer[0].Header().Name,
						"a program looks for the name that it asked")
				}
				other := map[string]string{cluster: upstream, upstream: cluster}[c.by]
				assert.Equal(t, 1, servers[c.by].wasAsked(c.asked), "%s was asked %v, %s %v", c.by,
					servers[c.by].questions(), other, servers[other].questions())
				if c.secret {
					assert.Zero(t, servers[other].wasAsked(c.asked))
					assert.Zero(t, servers[other].wasAsked(c.name))
				}
			})
		}
	}
}

// An answer that is too large for UDP is fetched over TCP, so that a program which can take it has
// it at once, and one that cannot is told to come back over TCP.
func TestLargeAnswers(t *testing.T) {
	upstream := newServer(t, func(network string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		if network == "udp" {
			m.Truncated = true
			return m
		}
		for i := range 100 {
			m.Answer = append(m.Answer, &dns.A{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 30},
				A:   net.IPv4(192, 0, 2, byte(i)),
			})
		}
		return m
	})
	p := start(t, []string{newCluster(t).address}, []string{upstream.address})

	large := new(dns.Msg).SetQuestion("many.big.example.com.", dns.TypeA).SetEdns0(4096, false)
	answer, _, err := new(dns.Client).Exchange(large, p.Addr().String())
	require.NoError(t, err)
	assert.False(t, answer.Truncated)
	assert.Len(t, answer.Answer, 100)
	assert.Equal(t, []string{"udp many.big.example.com. A", "tcp many.big.example.com. A"}, upstream.questions())

	small := new(dns.Msg).SetQuestion("many.big.example.com.", dns.TypeA)
	answer, _, err = new(dns.Client).Exchange(small, p.Addr().String())
	require.NoError(t, err)
	assert.True(t, answer.Truncated)
	assert.Less(t, len(answer.Answer), 100)
	answer.Compress = true // as it was sent
	assert.LessOrEqual(t, answer.Len(), dns.MinMsgSize)

	assert.Len(t, resolve(t, p, "tcp", "many.big.example.com.", dns.TypeA).Answer, 100)
}

// One server that is down is not noticed, whichever way it is down.
func TestServersFillInForEachOther(t *testing.T) {
	t.Parallel()
	failing := func(rcode int) func(testing.TB) string {
		return func(t testing.TB) string {
			return newServer(t, func(_ string, q *dns.Msg) *dns.Msg { return new(dns.Msg).SetRcode(q, rcode) }).address
		}
	}
	for name, down := range map[string]func(testing.TB) string{
		"nothing listens": dead,
		"silent":          silent,
		"failing":         failing(dns.RcodeServerFailure),
		"refusing":        failing(dns.RcodeRefused),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, []string{down(t), newCluster(t).address}, []string{down(t), newUpstream(t).address})
			for name, want := range map[string]string{
				"catalog.shop.svc.cluster.local.": "10.96.0.5",
				"catalog.shop.":                   "10.96.0.5",
				"www.shop.example.com.":           "192.0.2.2",
				"example.com.":                    "192.0.2.1",
			} {
				t.Run(name, func(t *testing.T) {
					t.Parallel()
					answer := resolve(t, p, "udp", name, dns.TypeA)
					require.Equal(t, "NOERROR", dns.RcodeToString[answer.Rcode])
					require.Len(t, answer.Answer, 1)
					assert.Equal(t, want, answer.Answer[0].(*dns.A).A.String())
				})
			}
		})
	}
}

// When nobody answers the program is told so before it gives up on the proxy.
func TestNobodyAnswers(t *testing.T) {
	t.Parallel()
	assert.Less(t, exchangeTimeout, 5*time.Second, "the time that resolv.conf gives a server")
	for name, down := range map[string]func(testing.TB) string{"nothing listens": dead, "silent": silent} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, []string{down(t), down(t)}, []string{down(t), down(t)})
			for _, name := range []string{"catalog.", "catalog.shop.svc.", "catalog.shop.", "www.shop.example.com."} {
				for _, network := range []string{"udp", "tcp"} {
					t.Run(name+" over "+network, func(t *testing.T) {
						t.Parallel()
						assert.Equal(t, "SERVFAIL", dns.RcodeToString[resolve(t, p, network, name, dns.TypeA).Rcode])
					})
				}
			}
		})
	}
	t.Run("there is no upstream", func(t *testing.T) {
		p := start(t, []string{newCluster(t).address}, nil)
		assert.Equal(t, "SERVFAIL", dns.RcodeToString[resolve(t, p, "udp", "www.shop.example.com.", dns.TypeA).Rcode])
		assert.Equal(t, "NOERROR", dns.RcodeToString[resolve(t, p, "udp", "catalog.", dns.TypeA).Rcode])
	})
}

// A cluster that cannot be reached does not take the rest of the internet with it.
func TestInternetWithoutCluster(t *testing.T) {
	t.Parallel()
	for name, cluster := range map[string][]string{
		"nothing listens": {dead(t), dead(t)},
		"silent":          {silent(t), silent(t)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := start(t, cluster, []string{newUpstream(t).address})
			for _, name := range []string{"example.com.", "www.shop.example.com.", "8.8.8.8.in-addr.arpa."} {
				kind := dns.TypeA
				if strings.HasSuffix(name, ".arpa.") {
					kind = dns.TypePTR
				}
				assert.Len(t, resolve(t, p, "udp", name, kind).Answer, 1, name)
			}
		})
	}
}

// A cluster that was not heard lately is not waited for, and a host of the office is found whatever
// its name looks like.
func TestClusterThatIsAway(t *testing.T) {
	var away atomic.Bool
	cluster, upstream := newCluster(t), newUpstream(t)
	p := startWith(t, Config{
		Cluster:  []string{cluster.address},
		Upstream: []string{upstream.address},
		Alive:    func() bool { return !away.Load() },
	})
	assert.Len(t, resolve(t, p, "udp", "kubernetes.default.", dns.TypeA).Answer, 1)
	asked := len(cluster.questions())
	away.Store(true)
	for name, want := range map[string]string{
		"example.com.": "NOERROR", "intranet.": "NOERROR", "go.shop.": "NOERROR", "absent.example.com.": "NXDOMAIN",
		// It may be a service: that nobody outside has heard of it does not say that there is none.
		"absent.":                 "SERVFAIL",
		"absent.shop.":            "SERVFAIL",
		"absent.default.":         "SERVFAIL",
		"catalog.shop.svc.":       "SERVFAIL",
		"9.0.96.10.in-addr.arpa.": "SERVFAIL",
	} {
		assert.Equal(t, want, dns.RcodeToString[resolve(t, p, "udp", name, dns.TypeA).Rcode], name)
	}
	assert.Len(t, cluster.questions(), asked)
	away.Store(false)
	assert.Len(t, resolve(t, p, "udp", "catalog.shop.svc.", dns.TypeA).Answer, 1, "as soon as it is back")
}

// A cluster's DNS that says nothing is waited for once in a while, and not for each name of the
// internet.
func TestSilenceIsRemembered(t *testing.T) {
	t.Parallel()
	var passed atomic.Int64
	began := time.Now()
	cluster, upstream := newServer(t, func(string, *dns.Msg) *dns.Msg { return nil }), newUpstream(t)
	p := startWith(t, Config{
		Cluster:  []string{cluster.address},
		Upstream: []string{upstream.address},
		now:      func() time.Time { return began.Add(time.Duration(passed.Load())) },
	})
	for n := range 2 {
		for range 3 {
			assert.Len(t, resolve(t, p, "udp", "example.com.", dns.TypeA).Answer, 1)
		}
		assert.Equal(t, n+1, cluster.wasAsked("com.svc.cluster.local."))
		passed.Add(int64(silenceTTL))
	}
	assert.Len(t, resolve(t, p, "udp", "intranet.", dns.TypeA).Answer, 1,
		"upstream is asked for a name of one label too")
}

// Whether a name's last label is a namespace is asked once, and not for each name. A failure says
// nothing and is not kept.
func TestNamespacesAreRemembered(t *testing.T) {
	cluster, upstream := newCluster(t), newUpstream(t)
	p := start(t, []string{cluster.address}, []string{upstream.address})
	for range 3 {
		resolve(t, p, "udp", "example.com.", dns.TypeA)
		resolve(t, p, "udp", "catalog.shop.", dns.TypeA)
		resolve(t, p, "udp", "kubernetes.default.", dns.TypeA)
	}
	assert.Equal(t, 1, cluster.wasAsked("com.svc.cluster.local."))
	assert.Equal(t, 1, cluster.wasAsked("default.svc.cluster.local."))
	assert.Zero(t, cluster.wasAsked("shop.svc.cluster.local."), "the session is in it")

	var broken sync.Mutex // held while the cluster's DNS cannot see the API server
	broken.Lock()
	answer := zone(t, map[string]string{"lab.svc.cluster.local.": "", "catalog.lab.svc.cluster.local.": "A 10.96.0.5"})
	cluster = newServer(t, func(network string, q *dns.Msg) *dns.Msg {
		if !broken.TryLock() {
			return new(dns.Msg).SetRcode(q, dns.RcodeServerFailure)
		}
		defer broken.Unlock()
		return answer(network, q)
	})
	p = start(t, []string{cluster.address}, []string{upstream.address})
	resolve(t, p, "udp", "catalog.lab.", dns.TypeA)
	broken.Unlock()
	assert.Len(t, resolve(t, p, "udp", "catalog.lab.", dns.TypeA).Answer, 1,
		"as soon as the cluster's DNS is well again")
}

// Many programs ask at once, and none gets the answer of another.
func TestManyAtOnce(t *testing.T) {
	upstream := newServer(t, func(_ string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{
			&dns.TXT{
				Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeTXT, Class: dns.ClassINET},
				Txt: []string{q.Question[0].Name},
			},
		}
		return m
	})
	p := start(t, []string{newCluster(t).address}, []string{upstream.address})
	var all sync.WaitGroup
	for i := range 100 {
		all.Go(func() {
			name := fmt.Sprintf("host-%d.of.example.com.", i)
			c := &dns.Client{Net: []string{"udp", "tcp"}[i%2], Timeout: exchangeTimeout}
			answer, _, err := c.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeTXT), p.Addr().String())
			if assert.NoError(t, err) && assert.Len(t, answer.Answer, 1) {
				assert.Equal(t, []string{name}, answer.Answer[0].(*dns.TXT).Txt)
			}
		})
	}
	all.Wait()
}

// The address must be free: half a proxy is none.
func TestStartRefuses(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	_, err = Start(Config{Listen: netip.MustParseAddrPort(taken.Addr().String())})
	require.ErrorContains(t, err, "listen for DNS")
	again, err := net.ListenPacket("udp", taken.Addr().String())
	require.NoError(t, err, "its UDP port is free again")
	_ = again.Close()
}

// FuzzServeDNS: any program of the laptop can send the proxy any bytes. Each message gets one
// answer of its own, in its size.
func FuzzServeDNS(f *testing.F) {
	for _, name := range []string{
		"catalog.",
		"catalog.shop.",
		"example.com.",
		"5.0.96.10.in-addr.arpa.",
		".",
		strings.Repeat("0.", 32) + "ip6.arpa.",
	} {
		raw, err := new(dns.Msg).SetQuestion(name, dns.TypeA).Pack()
		require.NoError(f, err)
		f.Add(raw)
	}
	edns, err := new(dns.Msg).SetQuestion("example.com.", dns.TypeA).SetEdns0(100, true).Pack()
	require.NoError(f, err)
	f.Add(edns)
	f.Add([]byte{})
	for _, name := range []string{
		"db-0.db.",
		"_sql._tcp.db.shop.",
		"many.",
		"outside.",
		"a.b.svc.",
		"www.example.com.svc.cluster.local.",
	} {
		raw, err := new(dns.Msg).SetQuestion(name, dns.TypeSRV).SetEdns0(512, false).Pack()
		require.NoError(f, err)
		f.Add(raw)
	}
	p := startKnowing(f, newWatched(), newCluster(f), newUpstream(f))
	f.Fuzz(func(t *testing.T, raw []byte) {
		q := new(dns.Msg)
		if q.Unpack(raw) != nil {
			return
		}
		w := &recorder{}
		p.ServeDNS(w, q)
		require.Len(t, w.answers, 1)
		require.Equal(t, q.Id, w.answers[0].Id)
		packed, err := w.answers[0].Pack()
		if err != nil {
			return // a name that can be read but not written; the server drops it
		}
		size := dns.MinMsgSize
		if e := q.IsEdns0(); e != nil {
			size = max(size, int(e.UDPSize()))
		}
		require.LessOrEqual(t, len(packed), size)
	})
}

// recorder is where ServeDNS's answers go when there is no program.
type recorder struct {
	dns.ResponseWriter
	answers []*dns.Msg
}

func (r *recorder) RemoteAddr() net.Addr      { return &net.UDPAddr{} }
func (r *recorder) WriteMsg(m *dns.Msg) error { r.answers = append(r.answers, m); return nil }
