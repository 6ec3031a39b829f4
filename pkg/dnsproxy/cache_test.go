package dnsproxy

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func rr(t testing.TB, text string) dns.RR {
	r, err := dns.NewRR(text)
	require.NoError(t, err)
	return r
}

func TestLifetime(t *testing.T) {
	soa := "cluster.local. %d IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 %d"
	for name, c := range map[string]struct {
		answer, ns []string
		rcode      int
		truncated  bool
		want       time.Duration
	}{
		"as the record says": {answer: []string{"x. 5 IN A 10.0.0.1"}, want: 5 * time.Second},
		"the shortest": {
			answer: []string{"x. 30 IN CNAME y.", "y. 7 IN A 10.0.0.1"},
			want:   7 * time.Second,
		},
		"not for days": {answer: []string{"x. 86400 IN A 10.0.0.1"}, want: maxTTL},
		"not at all":   {answer: []string{"x. 0 IN A 10.0.0.1"}},
		"a part":       {answer: []string{"x. 5 IN A 10.0.0.1"}, truncated: true},
		"no such name": {
			ns:    []string{fmt.Sprintf(soa, 30, 5)},
			rcode: dns.RcodeNameError,
			want:  5 * time.Second,
		},
		"no such name, SOA is shorter": {
			ns:    []string{fmt.Sprintf(soa, 3, 5)},
			rcode: dns.RcodeNameError,
			want:  3 * time.Second,
		},
		"no such name for a day": {
			ns:    []string{fmt.Sprintf(soa, 86400, 86400)},
			rcode: dns.RcodeNameError,
			want:  maxNegativeTTL,
		},
		"no such type":                {ns: []string{fmt.Sprintf(soa, 30, 10)}, want: 10 * time.Second},
		"no such name, without a SOA": {rcode: dns.RcodeNameError},
		"nothing":                     {},
		"a failure":                   {ns: []string{fmt.Sprintf(soa, 30, 10)}, rcode: dns.RcodeServerFailure},
		"a refusal":                   {rcode: dns.RcodeRefused},
		"a chain that leads nowhere": {
			answer: []string{"x. 60 IN CNAME y."},
			ns:     []string{fmt.Sprintf(soa, 30, 5)},
			rcode:  dns.RcodeNameError,
			want:   5 * time.Second,
		},
	} {
		t.Run(name, func(t *testing.T) {
			m := new(dns.Msg).SetEdns0(ednsSize, true) // its TTL is not one
			m.Rcode, m.Truncated = c.rcode, c.truncated
			for _, text := range c.answer {
				m.Answer = append(m.Answer, rr(t, text))
			}
			for _, text := range c.ns {
				m.Ns = append(m.Ns, rr(t, text))
			}
			assert.Equal(t, c.want, lifetime(m))
		})
	}
}

func TestCache(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cache
		q := new(dns.Msg).SetQuestion("x.", dns.TypeA).SetEdns0(ednsSize, false)
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{rr(t, "x. 5 IN A 10.0.0.1")}
		c.put(q, m)
		m.Answer[0].Header().Ttl = 99 // the cache's copy is its own
		time.Sleep(2 * time.Second)
		for range 2 {
			got := c.get(new(dns.Msg).SetQuestion("X.", dns.TypeA))
			require.NotNil(t, got)
			assert.Equal(t, uint32(3), got.Answer[0].Header().Ttl)
			got.Answer[0].Header().Ttl = 77
		}
		for name, other := range map[string]*dns.Msg{
			"name":       new(dns.Msg).SetQuestion("y.", dns.TypeA),
			"type":       new(dns.Msg).SetQuestion("x.", dns.TypeAAAA),
			"signatures": new(dns.Msg).SetQuestion("x.", dns.TypeA).SetEdns0(ednsSize, true),
			"unchecked": {
				MsgHdr:   dns.MsgHdr{CheckingDisabled: true},
				Question: []dns.Question{{Name: "x.", Qtype: dns.TypeA, Qclass: dns.ClassINET}},
			},
			"class": {Question: []dns.Question{{Name: "x.", Qtype: dns.TypeA, Qclass: dns.ClassCHAOS}}},
		} {
			assert.Nil(t, c.get(other), "another "+name)
		}
		time.Sleep(3 * time.Second)
		assert.Nil(t, c.get(q), "it is over")
	})
}

func TestCacheIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cache
		add := func(i int) {
			q := new(dns.Msg).SetQuestion(fmt.Sprintf("x%d.", i), dns.TypeA)
			m := new(dns.Msg).SetReply(q)
			m.Answer = []dns.RR{rr(t, fmt.Sprintf("x%d. %d IN A 10.0.0.1", i, 1+i%2*100))}
			c.put(q, m)
		}
		for i := range maxCached {
			add(i)
		}
		assert.Len(t, c.all, maxCached)
		time.Sleep(2 * time.Second)
		add(maxCached) // half of all are over: they go first
		assert.Len(t, c.all, maxCached/2+1)
		for i := range 3 * maxCached {
			add(maxCached + i)
			require.LessOrEqual(t, len(c.all), maxCached)
		}

		large := new(dns.Msg).SetQuestion("large.", dns.TypeTXT)
		m := new(dns.Msg).SetReply(large)
		for range 100 {
			m.Answer = append(m.Answer, rr(t, `large. 60 IN TXT "`+strings.Repeat("0123456789", 10)+`"`))
		}
		c.put(large, m)
		assert.Nil(t, c.get(large))
	})
}

// The cluster is asked once for a name in each of its forms, and the resolver of before each time:
// it has its own cache.
func TestForwardedOnce(t *testing.T) {
	cluster, upstream := newCluster(t), newUpstream(t)
	p := start(t, []string{cluster.address}, []string{upstream.address})
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{
			"catalog.",
			"catalog.shop.",
			"Catalog.Shop.svc.",
			"catalog.shop.svc.cluster.local.",
			"CATALOG.shop.svc.cluster.local.",
		} {
			answer := resolve(t, p, network, name, dns.TypeA)
			require.Len(t, answer.Answer, 1)
			assert.Equal(t, name, answer.Answer[0].Header().Name)
		}
		resolve(t, p, network, "example.com.", dns.TypeA)
	}
	assert.Equal(t, 1, cluster.wasAsked("catalog.shop.svc.cluster.local."))
	assert.Equal(t, 2, upstream.wasAsked("example.com."))
}

// Cookies and sizes are between neighbours; a cached answer must carry nobody else's.
func TestEDNSEndsHere(t *testing.T) {
	cluster := newServer(t, func(_ string, q *dns.Msg) *dns.Msg {
		m := new(dns.Msg).SetReply(q)
		m.Answer = []dns.RR{rr(t, q.Question[0].Name+" 30 IN A 10.96.0.5")}
		e := q.IsEdns0()
		if assert.NotNil(t, e) {
			assert.Empty(t, e.Option)
			m.SetEdns0(4096, false)
			m.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "0123456789abcdef"}}
		}
		return m
	})
	p := start(t, []string{cluster.address}, nil)
	for range 2 {
		assert.Nil(t, resolve(t, p, "udp", "catalog.", dns.TypeA).IsEdns0())
		q := new(dns.Msg).SetQuestion("catalog.", dns.TypeA).SetEdns0(4096, false)
		q.IsEdns0().Option = []dns.EDNS0{&dns.EDNS0_COOKIE{Code: dns.EDNS0COOKIE, Cookie: "fedcba9876543210"}}
		answer, _, err := new(dns.Client).Exchange(q, p.Addr().String())
		require.NoError(t, err)
		require.NotNil(t, answer.IsEdns0())
		assert.Empty(t, answer.IsEdns0().Option)
	}
	assert.Len(t, cluster.questions(), 1)
}
