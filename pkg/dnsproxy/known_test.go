package dnsproxy

import (
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/dnsproxy/records"
)

// watched is what a watch of namespace shop knows; of namespaces only when it may list them.
type watched struct {
	zone       *records.Zone
	synced     atomic.Bool
	namespaces map[string]bool
}

func (w *watched) Answer(q dns.Question) (records.Answer, bool) {
	if !w.synced.Load() {
		return records.Answer{}, false
	}
	return w.zone.Answer(q)
}

func (w *watched) Namespace(name string) (exists, known bool) {
	return w.namespaces[name], w.namespaces != nil
}

func newWatched(namespaces ...string) *watched {
	w := &watched{zone: records.New("cluster.local", "shop")}
	if len(namespaces) > 0 {
		w.namespaces = map[string]bool{}
	}
	for _, n := range namespaces {
		w.namespaces[n] = true
	}
	sql := []records.Port{{Name: "sql", Protocol: "TCP", Number: 5432}}
	w.zone.SetServices([]records.Service{
		{Name: "catalog", ClusterIPs: []string{"10.96.0.50"}, Ports: sql},
		{Name: "db", ClusterIPs: []string{records.None}, Ports: sql},
		{Name: "many", ClusterIPs: []string{records.None}, Ports: sql},
		{Name: "outside", External: "db.example.com", IsExternal: true},
	})
	var crowd records.Slice
	crowd.Name, crowd.Service = "many-1", "many"
	for i := range 100 {
		crowd.Endpoints = append(crowd.Endpoints, records.Endpoint{
			Addresses: []string{netip.AddrFrom4([4]byte{10, 42, 7, byte(i)}).String()},
		})
	}
	w.zone.SetSlices([]records.Slice{
		{
			Name:      "db-1",
			Service:   "db",
			Ports:     sql,
			Endpoints: []records.Endpoint{{Hostname: "db-0", Addresses: []string{"10.42.0.90"}}},
		},
		crowd,
	})
	w.synced.Store(true)
	return w
}

func startKnowing(t testing.TB, n Names, cluster, upstream *server) *Proxy {
	return startWith(t, Config{Cluster: []string{cluster.address}, Upstream: []string{upstream.address}, Names: n})
}

// Names of the namespace cost no question to anybody, in each form; what is not here goes where it
// went before.
func TestKnownHere(t *testing.T) {
	cluster, upstream := newCluster(t), newUpstream(t)
	p := startKnowing(t, newWatched("shop", "default", "other"), cluster, upstream)
	for _, network := range []string{"udp", "tcp"} {
		for _, name := range []string{
			"catalog.",
			"CATalog.",
			"catalog.shop.",
			"catalog.shop.svc.",
			"catalog.shop.svc.cluster.local.",
			"Catalog.Shop.Svc.Cluster.Local.",
		} {
			answer := resolve(t, p, network, name, dns.TypeA)
			require.Len(t, answer.Answer, 1, name)
			assert.Equal(t, "10.96.0.50", answer.Answer[0].(*dns.A).A.String())
			assert.Equal(t, name, answer.Answer[0].Header().Name)
			assert.True(t, answer.RecursionAvailable)
			answer = resolve(t, p, network, name, dns.TypeAAAA)
			assert.Equal(t, "NOERROR", dns.RcodeToString[answer.Rcode], "the name is there, without such an address")
			assert.Empty(t, answer.Answer)
			assert.Len(t, answer.Ns, 1)
		}
		// The first entry of a pod's search path is the namespace, for names of several labels too.
		for _, name := range []string{"db-0.db.", "db-0.db.shop.", "db-0.db.shop.svc."} {
			assert.Len(t, resolve(t, p, network, name, dns.TypeA).Answer, 1, name)
		}
		for _, name := range []string{"_sql._tcp.db.", "_sql._tcp.db.shop.", "_sql._tcp.db.shop.svc."} {
			assert.Len(t, resolve(t, p, network, name, dns.TypeSRV).Answer, 1, name)
		}
		assert.Len(t, resolve(t, p, network, "50.0.96.10.in-addr.arpa.", dns.TypePTR).Answer, 1)
		assert.Equal(t, "NXDOMAIN", dns.RcodeToString[resolve(t, p, network, "absent.shop.svc.", dns.TypeA).Rcode])
	}
	assert.Empty(t, cluster.questions())
	assert.Empty(t, upstream.questions())

	assert.Len(t, resolve(t, p, "udp", "kubernetes.default.", dns.TypeA).Answer, 1, "another namespace")
	assert.Equal(t, []string{"udp kubernetes.default.svc.cluster.local. A"}, cluster.questions())
	assert.Len(t, resolve(t, p, "udp", "intranet.", dns.TypeA).Answer, 1)
	assert.Equal(t, []string{"udp intranet. A"}, upstream.questions())
	assert.Len(t, cluster.questions(), 1, "that there is no such service is known here")
}

// Where the namespaces are known, the cluster hears nothing of the internet's names, however a
// program's resolver puts its search path behind them.
func TestInternetIsNoneOfTheClustersBusiness(t *testing.T) {
	cluster, upstream := newCluster(t), newUpstream(t)
	p := startKnowing(t, newWatched("shop", "default"), cluster, upstream)
	for _, name := range []string{
		"example.com.",
		"www.shop.example.com.",
		"absent.example.com.",
		"intranet.",
		"absent.",
		"8.8.8.8.in-addr.arpa.",
		"_x._tcp.example.com.",
	} {
		resolve(t, p, "udp", name, dns.TypeA)
		for _, suffix := range []string{"shop.svc.cluster.local.", "svc.cluster.local.", "svc."} {
			if strings.Count(name, ".") == 1 && suffix != "shop.svc.cluster.local." {
				continue
			}
			answer := resolve(t, p, "udp", name+suffix, dns.TypeA)
			assert.Equal(t, "NXDOMAIN", dns.RcodeToString[answer.Rcode], name+suffix)
		}
		if strings.Count(name, ".") > 1 {
			answer := resolve(t, p, "udp", name+"cluster.local.", dns.TypeA)
			assert.Equal(t, "NXDOMAIN", dns.RcodeToString[answer.Rcode])
			require.Len(t, answer.Ns, 1)
			assert.Equal(t, "cluster.local.", answer.Ns[0].Header().Name)
		}
	}
	assert.Empty(t, cluster.questions())
}

// A program that does not find a name of the cluster's tries it with the office's suffixes too.
func TestClusterIsNoneOfTheOfficesBusiness(t *testing.T) {
	cluster, upstream := newCluster(t), newUpstream(t)
	p := startKnowing(t, newWatched("shop", "default"), cluster, upstream)
	for _, name := range []string{
		"absent.shop.svc.cluster.local.office.example.com.",
		"Absent.shop.svc.Cluster.local.lan.",
	} {
		assert.Equal(t, "NXDOMAIN", dns.RcodeToString[resolve(t, p, "udp", name, dns.TypeA).Rcode])
	}
	assert.Empty(t, upstream.questions())
	assert.Empty(t, cluster.questions())
}

// Where they are not, no more than the last label is asked, and not what no namespace can be
// called.
func TestLastResort(t *testing.T) {
	cluster, upstream := newCluster(t), newUpstream(t)
	p := startKnowing(t, newWatched(), cluster, upstream)
	for _, name := range []string{
		"www.example.com.",
		"www.example.com.svc.cluster.local.",
		"a.b.c_d.",
		"_x._tcp.example.com.",
		"a.b.example.net.",
		"www.example.com.cluster.local.",
	} {
		resolve(t, p, "udp", name, dns.TypeA)
	}
	assert.Equal(t, []string{"udp com.svc.cluster.local. A"}, cluster.questions())
}

// While the watch says nothing, the cluster's DNS is asked.
func TestNotSynced(t *testing.T) {
	cluster, upstream := newCluster(t), newUpstream(t)
	names := newWatched()
	names.synced.Store(false)
	p := startKnowing(t, names, cluster, upstream)
	assert.Equal(t, "10.96.0.5", resolve(t, p, "udp", "catalog.", dns.TypeA).Answer[0].(*dns.A).A.String())
	names.synced.Store(true)
	assert.Equal(t, "10.96.0.50", resolve(t, p, "udp", "catalog.", dns.TypeA).Answer[0].(*dns.A).A.String(),
		"the cache is not asked first")
	names.synced.Store(false)
	assert.Equal(t, "10.96.0.5", resolve(t, p, "udp", "catalog.", dns.TypeA).Answer[0].(*dns.A).A.String())
}

// An answer that does not fit is fetched over TCP; EDNS says how much fits, and is answered with
// EDNS.
func TestKnownSizes(t *testing.T) {
	p := startKnowing(t, newWatched(), newCluster(t), newUpstream(t))
	answer := resolve(t, p, "udp", "many.", dns.TypeA)
	assert.True(t, answer.Truncated)
	assert.Nil(t, answer.IsEdns0())
	assert.Len(t, resolve(t, p, "tcp", "many.", dns.TypeA).Answer, 100)

	large := new(dns.Msg).SetQuestion("many.", dns.TypeA).SetEdns0(4096, true)
	answer, _, err := new(dns.Client).Exchange(large, p.Addr().String())
	require.NoError(t, err)
	assert.False(t, answer.Truncated)
	assert.Len(t, answer.Answer, 100)
	require.NotNil(t, answer.IsEdns0())
	assert.True(t, answer.IsEdns0().Do())
}

func TestEDNSVersion(t *testing.T) {
	p := startKnowing(t, newWatched(), newCluster(t), newUpstream(t))
	later := new(dns.Msg).SetQuestion("catalog.", dns.TypeA).SetEdns0(1232, false)
	later.IsEdns0().SetVersion(1)
	answer, _, err := new(dns.Client).Exchange(later, p.Addr().String())
	require.NoError(t, err)
	assert.Equal(t, dns.RcodeBadVers, answer.Rcode)
	assert.Empty(t, answer.Answer)
}

// BenchmarkKnown is the work of one answer, from the message that was read to the one to be
// written.
func BenchmarkKnown(b *testing.B) {
	p := newProxy(Config{Domain: "cluster.local", Namespace: "shop", Names: newWatched("shop")})
	for _, name := range []string{
		"catalog.",
		"catalog.shop.",
		"catalog.shop.svc.cluster.local.",
		"absent.shop.svc.cluster.local.",
	} {
		raw, err := new(dns.Msg).SetQuestion(name, dns.TypeA).SetEdns0(1232, false).Pack()
		require.NoError(b, err)
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				q, w := new(dns.Msg), &recorder{}
				if err := q.Unpack(raw); err != nil {
					b.Fatal(err)
				}
				p.ServeDNS(w, q)
				if _, err := w.answers[0].Pack(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
