package records

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shop is a namespace with a service of each sort.
func shop() *Zone {
	z := New("cluster.local", "shop")
	http := Port{"http", "TCP", 80}
	z.SetServices([]Service{
		{Name: "catalog", ClusterIPs: []string{"10.96.0.5"}, Ports: []Port{http, {"metrics", "TCP", 9090}}},
		{Name: "dual", ClusterIPs: []string{"10.96.0.6", "fd00::6"}, Ports: []Port{http}},
		{Name: "dns", ClusterIPs: []string{"10.96.0.7"}, Ports: []Port{{"dns", "UDP", 53}, {"dns-tcp", "TCP", 53}}},
		{Name: "db", ClusterIPs: []string{None}, Ports: []Port{{"sql", "TCP", 5432}}},
		{Name: "bare", ClusterIPs: []string{None}},
		{Name: "empty", ClusterIPs: []string{None}, Ports: []Port{http}},
		{Name: "named", ClusterIPs: []string{None}, Ports: []Port{http}},
		{Name: "pending", Ports: []Port{http}},
		{Name: "outside", External: "db.example.com", IsExternal: true},
		{Name: "alias", External: "catalog.shop.svc.cluster.local.", IsExternal: true},
		{Name: "chain", External: "alias.shop.svc.cluster.local", IsExternal: true},
		{Name: "pod", External: "db-0.db.shop.svc.cluster.local", IsExternal: true},
		{Name: "nowhere", External: "absent.shop.svc.cluster.local", IsExternal: true},
		{Name: "elsewhere", External: "target.other.svc.cluster.local", IsExternal: true},
		{Name: "ip", External: "192.0.2.1", IsExternal: true},
		{Name: "self", External: "self.shop.svc.cluster.local", IsExternal: true},
		{Name: "ping", External: "pong.shop.svc.cluster.local", IsExternal: true},
		{Name: "pong", External: "ping.shop.svc.cluster.local", IsExternal: true},
	})
	z.SetSlices([]Slice{
		{
			Name:      "catalog-1",
			Service:   "catalog",
			Ports:     []Port{{"http", "TCP", 8080}},
			Endpoints: []Endpoint{{"", []string{"10.42.0.3"}}},
		},
		{
			Name:      "db-1",
			Service:   "db",
			Ports:     []Port{{"sql", "TCP", 5432}},
			Endpoints: []Endpoint{{"db-0", []string{"10.42.0.9"}}, {"db-1", []string{"10.42.1.9"}}},
		},
		{
			Name:      "db-2",
			Service:   "db",
			Ports:     []Port{{"sql", "TCP", 5432}},
			Endpoints: []Endpoint{{"", []string{"fd01::9:0"}}, {"", []string{"fd01:1::"}}},
		},
		{Name: "bare-1", Service: "bare", Endpoints: []Endpoint{{"", []string{"10.42.0.4"}}}},
		{
			Name:      "named-1",
			Service:   "named",
			Ports:     []Port{{"http", "TCP", 80}},
			Endpoints: []Endpoint{{"", []string{"www.example.com"}}},
		},
		{Name: "stray", Service: "absent", Endpoints: []Endpoint{{"", []string{"10.42.0.5"}}}},
	})
	return z
}

// text is an answer as a person writes it: its records' data, or why there are none.
func text(a Answer, ok bool) string {
	if !ok {
		return "ask"
	}
	if a.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[a.Rcode]
	}
	if len(a.Answer) == 0 {
		return "NODATA"
	}
	var all []string
	for _, rr := range slices.Concat(a.Answer, a.Extra) {
		all = append(all, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(all)
	return strings.Join(all, ", ")
}

// These are the rules of CoreDNS 1.15's kubernetes plugin; the suite asks the real one the same.
func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		name, kind, want string
	}{
		{"catalog", "A", "10.96.0.5"},
		{"CATalog", "A", "10.96.0.5"},
		{"catalog", "AAAA", "NODATA"},
		{"catalog", "TXT", "NODATA"},
		{"catalog", "MX", "NODATA"},
		{"catalog", "HTTPS", "NODATA"},
		{"catalog", "NS", "NODATA"},
		{"catalog", "PTR", "NODATA"},
		{"catalog", "CNAME", "NODATA"},
		{"catalog", "ANY", "ask"},
		{"catalog", "SOA", "ask"},
		{"catalog", "AXFR", "ask"},
		{
			name: "catalog",
			kind: "SRV",
			want: "0 50 80 catalog.shop.svc.cluster.local., 0 50 9090 catalog.shop.svc.cluster.local., 10.96.0.5",
		},
		{"_http._tcp.catalog", "SRV", "0 100 80 catalog.shop.svc.cluster.local., 10.96.0.5"},
		{"http.tcp.catalog", "SRV", "0 100 80 catalog.shop.svc.cluster.local., 10.96.0.5"},
		{"_HTTP._TCP.catalog", "SRV", "0 100 80 catalog.shop.svc.cluster.local., 10.96.0.5"},
		{"_http._tcp.catalog", "A", "10.96.0.5"},
		{"_http._udp.catalog", "SRV", "NXDOMAIN"},
		{"_grpc._tcp.catalog", "SRV", "NXDOMAIN"},
		{"_http._udp.catalog", "A", "NXDOMAIN"},
		{"10-42-0-3.catalog", "A", "10.42.0.3"},
		{"10-42-0-4.catalog", "A", "NXDOMAIN"},
		{"10-42-0-3.catalog", "SRV", "0 100 8080 10-42-0-3.catalog.shop.svc.cluster.local., 10.42.0.3"},
		{"a.b.c.catalog", "A", "NXDOMAIN"},
		{"a.b.c.catalog", "SOA", "ask"},
		{"a.b.c.catalog", "CAA", "ask"},
		{"absent", "A", "NXDOMAIN"},
		{"absent", "AAAA", "NXDOMAIN"},
		{"absent", "SRV", "NXDOMAIN"},
		{"absent", "TXT", "NXDOMAIN"},
		{"absent", "HTTPS", "NXDOMAIN"},
		{"absent", "CNAME", "NXDOMAIN"},
		{"absent", "SOA", "ask"},
		{"*", "A", "NXDOMAIN"},

		{"dual", "A", "10.96.0.6"},
		{"dual", "AAAA", "fd00::6"},
		{"dual", "SRV", "0 50 80 dual.shop.svc.cluster.local., 10.96.0.6, fd00::6"},
		// Two protocols on one port are one record, with the weight of two.
		{"dns", "SRV", "0 50 53 dns.shop.svc.cluster.local., 10.96.0.7"},

		{"db", "A", "10.42.0.9, 10.42.1.9"},
		{"db", "AAAA", "fd01:1::, fd01::9:0"},
		{"db-0.db", "A", "10.42.0.9"},
		{"db-0.db", "AAAA", "NODATA"},
		{"DB-1.db", "A", "10.42.1.9"},
		{"db-2.db", "A", "NXDOMAIN"},
		{"10-42-0-9.db", "A", "NXDOMAIN"}, // it has a hostname
		{"fd01--9-0.db", "AAAA", "fd01::9:0"},
		{"fd01-1--0.db", "AAAA", "fd01:1::"},
		{
			name: "_sql._tcp.db",
			kind: "SRV",
			want: "0 25 5432 db-0.db.shop.svc.cluster.local., 0 25 5432 db-1.db.shop.svc.cluster.local., " +
				"0 25 5432 fd01--9-0.db.shop.svc.cluster.local., 0 25 5432 fd01-1--0.db.shop.svc.cluster.local., " +
				"10.42.0.9, 10.42.1.9, fd01:1::, fd01::9:0",
		},
		{"bare", "A", "10.42.0.4"},
		{"bare", "SRV", "NODATA"},
		{"empty", "A", "NXDOMAIN"},
		{"empty", "SRV", "NXDOMAIN"},
		{"named", "A", "ask"},
		{"pending", "A", "ask"},

		{"outside", "A", "ask"},
		{"outside", "CNAME", "db.example.com."},
		{"outside", "TXT", "NODATA"},
		{"outside", "SRV", "NODATA"},
		{"_http._tcp.outside", "SRV", "NXDOMAIN"},
		{"x.outside", "A", "NXDOMAIN"},
		{"alias", "A", "10.96.0.5, catalog.shop.svc.cluster.local."},
		{"alias", "AAAA", "NODATA"},
		{"chain", "A", "10.96.0.5, alias.shop.svc.cluster.local., catalog.shop.svc.cluster.local."},
		{"chain", "CNAME", "alias.shop.svc.cluster.local."},
		{"pod", "A", "10.42.0.9, db-0.db.shop.svc.cluster.local."},
		{"nowhere", "A", "NODATA"},
		{"elsewhere", "A", "ask"},
		{"ip", "A", "NXDOMAIN"},
		{"self", "A", "NODATA"},
		{"ping", "A", "NODATA"},

		{"", "A", "ask"}, // the namespace itself
		{`cat\097log`, "A", "ask"},
	} {
		t.Run(c.name+" "+c.kind, func(t *testing.T) {
			name := strings.TrimPrefix(c.name+".shop.svc.cluster.local.", ".")
			q := dns.Question{Name: name, Qtype: dns.StringToType[c.kind], Qclass: dns.ClassINET}
			a, ok := shop().Answer(q)
			assert.Equal(t, c.want, text(a, ok))
			if !ok {
				return
			}
			if len(a.Answer) == 0 {
				require.Len(t, a.Ns, 1, "it says for how long")
				assert.Equal(t, uint32(TTL), a.Ns[0].(*dns.SOA).Minttl)
			} else {
				assert.Empty(t, a.Ns)
				assert.Equal(t, name, a.Answer[0].Header().Name)
			}
		})
	}
}

func TestOtherNames(t *testing.T) {
	for _, name := range []string{
		"target.other.svc.cluster.local.",
		"10-42-0-3.shop.pod.cluster.local.",
		"cluster.local.",
		"svc.cluster.local.",
		"dns-version.cluster.local.",
		"xshop.svc.cluster.local.",
		"example.com.",
		".",
	} {
		a, ok := shop().Answer(dns.Question{Name: name, Qtype: dns.TypeA, Qclass: dns.ClassINET})
		assert.Equal(t, "ask", text(a, ok), name)
	}
	a, ok := shop().Answer(dns.Question{
		Name:   "catalog.shop.svc.cluster.local.",
		Qtype:  dns.TypeA,
		Qclass: dns.ClassCHAOS,
	})
	assert.Equal(t, "ask", text(a, ok))
}

func TestReverseAnswer(t *testing.T) {
	for ip, want := range map[string]string{
		"10.96.0.5": "catalog.shop.svc.cluster.local.",
		"fd00::6":   "dual.shop.svc.cluster.local.",
		"10.96.0.9": "ask",
		"10.42.0.9": "ask", // other namespaces may have it too
	} {
		name, err := dns.ReverseAddr(ip)
		require.NoError(t, err)
		a, ok := shop().Answer(dns.Question{Name: name, Qtype: dns.TypePTR, Qclass: dns.ClassINET})
		assert.Equal(t, want, text(a, ok), ip)
		a, ok = shop().Answer(dns.Question{Name: name, Qtype: dns.TypeA, Qclass: dns.ClassINET})
		assert.Equal(t, "ask", text(a, ok), ip)
	}
}

// What is asked in capitals is answered in them, where CoreDNS does so.
func TestCase(t *testing.T) {
	a, ok := shop().Answer(dns.Question{
		Name:   "_SQL._tcp.DB.Shop.svc.Cluster.LOCAL.",
		Qtype:  dns.TypeSRV,
		Qclass: dns.ClassINET,
	})
	require.True(t, ok)
	assert.Equal(t, "_SQL._tcp.DB.Shop.svc.Cluster.LOCAL.", a.Answer[0].Header().Name)
	assert.True(t, strings.HasSuffix(a.Answer[0].(*dns.SRV).Target, ".db.shop.svc.Cluster.LOCAL."), a.Answer[0])
}

func TestChanges(t *testing.T) {
	z := shop()
	ask := func(name, kind string) string {
		if kind != "PTR" {
			name += ".shop.svc.cluster.local."
		}
		return text(z.Answer(dns.Question{Name: name, Qtype: dns.StringToType[kind], Qclass: dns.ClassINET}))
	}
	z.PutService(Service{Name: "new", ClusterIPs: []string{"10.96.0.20"}, Ports: []Port{{"http", "TCP", 80}}})
	assert.Equal(t, "10.96.0.20", ask("new", "A"))
	assert.Equal(t, "new.shop.svc.cluster.local.", ask("20.0.96.10.in-addr.arpa.", "PTR"))
	z.PutService(Service{Name: "new", ClusterIPs: []string{"10.96.0.21"}, Ports: []Port{{"http", "TCP", 80}}})
	assert.Equal(t, "10.96.0.21", ask("new", "A"))
	assert.Equal(t, "ask", ask("20.0.96.10.in-addr.arpa.", "PTR"))

	// An address goes from one service to another, and the news come in the wrong order.
	z.PutService(Service{Name: "newer", ClusterIPs: []string{"10.96.0.21"}, Ports: []Port{{"http", "TCP", 80}}})
	z.DeleteService("new")
	z.DeleteService("new")
	assert.Equal(t, "NXDOMAIN", ask("new", "A"))
	assert.Equal(t, "newer.shop.svc.cluster.local.", ask("21.0.96.10.in-addr.arpa.", "PTR"))

	z.PutSlice(Slice{
		Name:      "db-1",
		Service:   "db",
		Ports:     []Port{{"sql", "TCP", 5432}},
		Endpoints: []Endpoint{{"db-0", []string{"10.42.3.9"}}},
	})
	assert.Equal(t, "10.42.3.9", ask("db", "A"))
	assert.Equal(t, "NXDOMAIN", ask("db-1.db", "A"))
	z.DeleteSlice("db-1")
	assert.Equal(t, "NODATA", ask("db", "A"), "the other slice is of the other family")
	z.DeleteSlice("db-2")
	z.DeleteSlice("db-2")
	assert.Equal(t, "NXDOMAIN", ask("db", "A"))
	// A slice that goes to another service leaves the first.
	z.PutSlice(Slice{Name: "catalog-1", Service: "db", Endpoints: []Endpoint{{"", []string{"10.42.0.3"}}}})
	assert.Equal(t, "10.42.0.3", ask("db", "A"))
	assert.Equal(t, "NXDOMAIN", ask("10-42-0-3.catalog", "A"))

	z.SetServices(nil)
	z.SetSlices(nil)
	assert.Equal(t, "NXDOMAIN", ask("catalog", "A"))
	assert.Empty(t, z.byIP)
	assert.Empty(t, z.backends)
}

// Questions and changes at once: for the race detector.
func TestAtOnce(t *testing.T) {
	z := shop()
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := range 200 {
				z.PutService(Service{
					Name:       fmt.Sprint("s", i),
					ClusterIPs: []string{netip.AddrFrom4([4]byte{10, 96, byte(i), byte(n)}).String()},
				})
				z.PutSlice(Slice{
					Name:      fmt.Sprint("s", i),
					Service:   fmt.Sprint("s", i),
					Endpoints: []Endpoint{{"", []string{"10.42.0.3"}}},
				})
				a, ok := z.Answer(dns.Question{
					Name:   "db.shop.svc.cluster.local.",
					Qtype:  dns.TypeA,
					Qclass: dns.ClassINET,
				})
				assert.Equal(t, "10.42.0.9, 10.42.1.9", text(a, ok))
				if len(a.Answer) > 0 {
					a.Answer[0].Header().Name = "changed." // an answer belongs to who asked
				}
				z.DeleteSlice(fmt.Sprint("s", i))
			}
		})
	}
	all.Wait()
}

func TestReverse(t *testing.T) {
	for name, want := range map[string]string{
		"5.0.96.10.in-addr.arpa.":                          "10.96.0.5",
		"5.0.96.10.IN-ADDR.arpa.":                          "10.96.0.5",
		"6." + strings.Repeat("0.", 29) + "D.f.ip6.arpa.":  "fd00::6",
		"0.96.10.in-addr.arpa.":                            "",
		"256.0.96.10.in-addr.arpa.":                        "",
		"1.2.3.4.5.in-addr.arpa.":                          "",
		"in-addr.arpa.":                                    "",
		"ip6.arpa.":                                        "",
		"66." + strings.Repeat("0.", 29) + "d.f.ip6.arpa.": "",
		"example.com.":                                     "",
	} {
		ip, err := Reverse(name)
		if want == "" {
			assert.Error(t, err, name)
			continue
		}
		require.NoError(t, err)
		assert.Equal(t, want, ip.String())
	}
}

// FuzzAnswer: whatever is asked, an answer can be sent, and one about a name says nothing of
// another.
func FuzzAnswer(f *testing.F) {
	for _, name := range []string{
		"catalog",
		"_sql._tcp.db",
		"db-0.db",
		"chain",
		"..",
		"*",
		`\.`,
		strings.Repeat("a.", 80),
	} {
		f.Add(name+".shop.svc.cluster.local.", uint16(dns.TypeA))
		f.Add(name+".shop.svc.cluster.local.", uint16(dns.TypeSRV))
	}
	f.Add("5.0.96.10.in-addr.arpa.", dns.TypePTR)
	z := shop()
	f.Fuzz(func(t *testing.T, name string, kind uint16) {
		if _, ok := dns.IsDomainName(name); !ok {
			return
		}
		q := dns.Question{Name: dns.Fqdn(name), Qtype: kind, Qclass: dns.ClassINET}
		a, ok := z.Answer(q)
		if !ok {
			return
		}
		require.NotEqual(t, len(a.Answer) == 0, len(a.Ns) == 0)
		m := new(dns.Msg)
		m.Question = []dns.Question{q}
		if _, err := m.Pack(); err != nil {
			return // not a question that can be asked
		}
		m.Answer, m.Ns, m.Extra = a.Answer, a.Ns, a.Extra
		_, err := m.Pack()
		require.NoError(t, err)
		if len(a.Answer) > 0 {
			require.Equal(t, q.Name, a.Answer[0].Header().Name)
		}
	})
}

// BenchmarkAnswer is the work of one answer in a namespace of 1000 services with 3 pods each.
func BenchmarkAnswer(b *testing.B) {
	z := New("cluster.local", "shop")
	for i := range 1000 {
		name := fmt.Sprint("service-", i)
		z.PutService(Service{
			Name:       name,
			ClusterIPs: []string{fmt.Sprintf("10.96.%d.%d", i/250, i%250)},
			Ports:      []Port{{"http", "TCP", 80}},
		})
		z.PutSlice(Slice{
			Name:    name + "-1",
			Service: name,
			Ports:   []Port{{"http", "TCP", 8080}},
			Endpoints: []Endpoint{
				{"", []string{"10.42.0.1"}},
				{"", []string{"10.42.0.2"}},
				{"", []string{"10.42.0.3"}},
			},
		})
	}
	for _, c := range []struct {
		name string
		kind uint16
	}{
		{"service-500", dns.TypeA},
		{"service-500", dns.TypeAAAA},
		{"_http._tcp.service-500", dns.TypeSRV},
		{"10-42-0-2.service-500", dns.TypeA},
		{"absent", dns.TypeA},
	} {
		b.Run(c.name+" "+dns.TypeToString[c.kind], func(b *testing.B) {
			for b.Loop() {
				q := dns.Question{Name: c.name + ".shop.svc.cluster.local.", Qtype: c.kind, Qclass: dns.ClassINET}
				if _, ok := z.Answer(q); !ok {
					b.Fatal("not answered")
				}
			}
		})
	}
}
