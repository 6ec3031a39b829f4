package suite

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// normalize returns a DNS response as text, without the parts that may differ: the order, the TTL,
// the zone's serial number, and capitals.
func normalize(m *dns.Msg) string {
	text := func(all []dns.RR) string {
		var lines []string
		for _, rr := range all {
			if rr.Header().Rrtype == dns.TypeOPT {
				continue
			}
			rr = dns.Copy(rr)
			rr.Header().Ttl = 0
			if soa, ok := rr.(*dns.SOA); ok {
				soa.Serial = 0
			}
			lines = append(lines, strings.ToLower(rr.String()))
		}
		slices.Sort(lines)
		return strings.Join(lines, "\n  ")
	}
	return fmt.Sprintf("%s\nanswer:\n  %s\nauthority:\n  %s\nadditional:\n  %s", dns.RcodeToString[m.Rcode],
		text(m.Answer), text(m.Ns), text(m.Extra))
}

// compare sends the same questions to CoreDNS and to the laptop until both agree: CoreDNS's own
// cache may be a moment behind.
func compare(t *testing.T, coredns string, all []kit.Question) {
	t.Helper()
	laptop := kit.Resolver(t)
	local := 0
	deadline := time.Now().Add(30 * time.Second)
	for i, q := range all {
		network := []string{"udp", "tcp"}[i%2]
		for {
			want, err := kit.AskDNS(coredns, network, q)
			if err != nil && time.Now().Before(deadline) {
				continue // a datagram may be lost
			}
			require.NoError(t, err, "%v", q)
			got, err := kit.AskDNS(laptop, network, q)
			require.NoError(t, err, "%v", q)
			if normalize(want) != normalize(got) && time.Now().Before(deadline) {
				time.Sleep(200 * time.Millisecond)
				continue
			}
			assert.Equal(t, normalize(want), normalize(got), "%s %s", q.Name, dns.TypeToString[q.Type])
			// CoreDNS's kubernetes plugin denies that it is a recursive resolver. The proxy is one.
			assert.Equal(t, q.Local, got.RecursionAvailable, "whether %s %s is known on the laptop", q.Name,
				dns.TypeToString[q.Type])
			if got.RecursionAvailable {
				local++
			}
			break
		}
	}
	t.Logf("%d questions, %d of them answered on the laptop", len(all), local)
}

// dnsQuestions returns the questions about the shop: each name with each type.
func dnsQuestions(t *testing.T) (all []kit.Question) {
	const suffix = ".shop.svc.cluster.local."
	ip := func(name string) string {
		return kit.Kubectl(t, "-n", "shop", "get", "service", name, "-o", "jsonpath={.spec.clusterIP}")
	}
	pod := func(namespace, selector string) string {
		return kit.Kubectl(t, "-n", namespace, "get", "pod", "-l", selector, "-o", "jsonpath={.items[0].status.podIP}")
	}
	dashed := func(ip string) string { return strings.ReplaceAll(ip, ".", "-") }
	reverse := func(ip string) string {
		name, err := dns.ReverseAddr(ip)
		require.NoError(t, err)
		return name
	}
	db, catalog := pod("shop", "app=db"), pod("shop", "app=catalog")
	here := []uint16{
		dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeCNAME, dns.TypeTXT, dns.TypeMX, dns.TypeHTTPS,
		dns.TypeNS, dns.TypePTR,
	}
	there := []uint16{dns.TypeANY, dns.TypeSOA, dns.TypeNAPTR, dns.TypeCAA}
	for _, name := range []string{
		"catalog", "CataLog", "db", "db-0.db", "DB-1.db", "db-2.db", dashed(db) + ".db", dashed(db) + ".db-read",
		"db-0.db-read", dashed(catalog) + ".catalog", "10-1-2-3.catalog", "bare", "db-0.bare", "empty", "x.empty",
		"both", "eager", "slow-0.eager", "strict", "slow-0.strict", "hand", "four.hand", "six.hand",
		"192-0-2-2.hand", "192-0-2-3.hand", "2001-db8--0.hand", "_http._tcp.catalog", "_HTTP._tcp.catalog",
		"http.tcp.catalog", "_http._udp.catalog", "_grpc._tcp.catalog", "_sql._tcp.db", "_bulk._tcp.db",
		"_dns._udp.both", "_dns._tcp.both", "_http._tcp.alias", "alias", "chain", "pod", "nowhere", "ping",
		"absent", "x.absent", "a.b.c.catalog", "*", "_http._tcp.absent", "x.alias",
	} {
		for _, kind := range here {
			all = append(all, kit.Question{Name: name + suffix, Type: kind, Local: true})
		}
		for _, kind := range there {
			all = append(all, kit.Question{Name: name + suffix, Type: kind, Local: false})
		}
	}
	for _, name := range []string{"outside", "elsewhere"} {
		for _, kind := range here {
			all = append(all, kit.Question{
				Name: name + suffix, Type: kind,
				Local: kind != dns.TypeA && kind != dns.TypeAAAA,
			})
		}
	}
	for _, kind := range slices.Concat(here, there) {
		for _, name := range []string{
			"shop.svc.cluster.local.", "svc.cluster.local.", "target.other.svc.cluster.local.",
			"_bulk._tcp.target.other.svc.cluster.local.", "absent.other.svc.cluster.local.",
			dashed(db) + ".shop.pod.cluster.local.", "x.shop.pod.cluster.local.",
			"dns-version.cluster.local.", "ns.dns.cluster.local.",
		} {
			all = append(all, kit.Question{Name: name, Type: kind})
		}
	}
	// A name that no search path can produce is refused on the laptop, with CoreDNS's response.
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT} {
		for _, name := range []string{
			"catalog.nowhere.svc.cluster.local.",
			"www.example.com.svc.cluster.local.",
			"www.example.com.cluster.local.",
		} {
			all = append(all, kit.Question{Name: name, Type: kind, Local: true})
		}
	}
	for _, kind := range []uint16{dns.TypePTR, dns.TypeA} {
		for _, address := range []string{ip("catalog"), ip("db-read")} {
			all = append(all, kit.Question{Name: reverse(address), Type: kind, Local: kind == dns.TypePTR})
		}
		for _, address := range []string{db, pod("other", "app=target"), "10.96.0.1", "10.96.255.254"} {
			all = append(all, kit.Question{Name: reverse(address), Type: kind, Local: false})
		}
	}
	return all
}

// The laptop answers questions about the cluster's names exactly as CoreDNS does, record by record,
// for a developer who has only the shipped role.
func TestDNSEqualsCoreDNS(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine), kit.Uses(kit.Catalog, kit.Target))
	kit.DeployTarget(t)
	manifest := kit.Testdata("dns.yaml")
	kit.Kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "--ignore-not-found", "--wait=false", "-f", manifest) })
	kit.WaitForRollout(t, "shop", "statefulset/db")
	kit.Eventually(t, func() bool {
		return len(strings.Fields(kit.Query(t, "shop", "pods -l app=slow", "{.items[*].status.podIP}"))) == 2
	})

	mine := kit.Developer(t, "dora")
	kit.Detour(t, "--kubeconfig", mine, "connect", "-n", "shop")
	t.Cleanup(func() { _, _ = kit.Run("detour", "quit") })
	coredns := kit.Query(t, "kube-system", "service kube-dns", "{.spec.clusterIP}") + ":53"
	laptop := kit.Resolver(t)
	a := func(name string) kit.Question { return kit.Question{Name: name, Type: dns.TypeA, Local: true} }
	answer := func(name string) []string {
		var all []string
		m, err := kit.AskDNS(laptop, "udp", a(name))
		if err != nil {
			return nil
		}
		for _, rr := range m.Answer {
			if r, ok := rr.(*dns.A); ok {
				all = append(all, r.A.String())
			}
		}
		return all
	}
	kit.Eventually(t, func() bool {
		m, err := kit.AskDNS(laptop, "udp", a("catalog."))
		return err == nil && m.RecursionAvailable
	}, "the watches are whole")

	compare(t, coredns, dnsQuestions(t))

	t.Run("a name is there as soon as it is created", func(t *testing.T) {
		require.Empty(t, answer("fresh."), "and its absence is remembered by CoreDNS")
		_, err := kit.AskDNS(coredns, "udp", a("fresh.shop.svc.cluster.local."))
		require.NoError(t, err)
		kit.Kubectl(t, "-n", "shop", "create", "service", "clusterip", "fresh", "--tcp=80")
		created := time.Now()
		kit.Eventually(t, func() bool { return len(answer("fresh.")) == 1 })
		t.Logf("resolved %s after kubectl was done", time.Since(created).Round(time.Millisecond))
		compare(t, coredns, []kit.Question{a("fresh.shop.svc.cluster.local."), {
			Name: "fresh.shop.svc.cluster.local.",
			Type: dns.TypeSRV, Local: true,
		}})
		kit.Kubectl(t, "-n", "shop", "delete", "service", "fresh")
		deleted := time.Now()
		kit.Eventually(t, func() bool { return len(answer("fresh.")) == 0 })
		t.Logf("gone %s after kubectl was done", time.Since(deleted).Round(time.Millisecond))
		compare(t, coredns, []kit.Question{a("fresh.shop.svc.cluster.local."), {
			Name: "fresh.shop.svc.cluster.local.",
			Type: dns.TypeSRV, Local: true,
		}})
	})

	t.Run("endpoints move", func(t *testing.T) {
		before := answer("db-0.db.")
		require.Len(t, before, 1)
		kit.Kubectl(t, "-n", "shop", "delete", "pod", "db-0")
		kit.WaitForRollout(t, "shop", "statefulset/db")
		kit.Eventually(t, func() bool { now := answer("db-0.db."); return len(now) == 1 && now[0] != before[0] })
		kit.Kubectl(t, "-n", "shop", "scale", "statefulset/db", "--replicas=3")
		kit.WaitForRollout(t, "shop", "statefulset/db")
		kit.Eventually(t, func() bool { return len(answer("db.")) == 3 && len(answer("db-2.db.")) == 1 })
		kit.Kubectl(t, "-n", "shop", "delete", "service", "both")
		kit.Kubectl(t, "-n", "shop", "patch", "service", "alias", "--type=merge", "-p",
			`{"spec":{"externalName":"db-read.shop.svc.cluster.local"}}`)
		compare(t, coredns, dnsQuestions(t))
	})

	t.Run("short names are those of a pod", func(t *testing.T) {
		for _, c := range []kit.Question{
			{Name: "catalog.", Type: dns.TypeA, Local: true},
			{Name: "CATALOG.shop.", Type: dns.TypeA, Local: true},
			{Name: "catalog.shop.svc.", Type: dns.TypeA, Local: true},
			{Name: "db-1.db.", Type: dns.TypeA, Local: true},
			{Name: "db-1.db.shop.", Type: dns.TypeA, Local: true},
			{Name: "_sql._tcp.db.", Type: dns.TypeSRV, Local: true},
			{Name: "_sql._tcp.db.shop.", Type: dns.TypeSRV, Local: true},
			{Name: "target.other.", Type: dns.TypeA, Local: false},
			{Name: "_bulk._tcp.target.other.", Type: dns.TypeSRV, Local: false},
			{Name: "target.other.svc.", Type: dns.TypeA, Local: false},
		} {
			m, err := kit.AskDNS(laptop, "udp", c)
			require.NoError(t, err)
			require.NotEmpty(t, m.Answer, c.Name)
			assert.Equal(t, c.Name, m.Answer[0].Header().Name)
			assert.Equal(t, c.Local, m.RecursionAvailable, c.Name)
		}
	})
}

// While a watch is broken, and for a user who may not watch, the proxy asks the cluster's DNS, and
// names still resolve.
func TestDNSWithoutTheRight(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine))
	mine := kit.ServiceAccount(t, "dan")
	kit.Kubectl(t, "-n", "shop", "create", "role", "dan", "--verb=*",
		"--resource=sessions.detour.dev,intercepts.detour.dev,services,pods")
	t.Cleanup(func() { kit.Kubectl(t, "-n", "shop", "delete", "role", "dan") })
	kit.Kubectl(t, "-n", "shop", "create", "rolebinding", "dan", "--role=dan", "--serviceaccount=shop:dan")
	t.Cleanup(func() { kit.Kubectl(t, "-n", "shop", "delete", "rolebinding", "dan") })
	kit.Detour(t, "--kubeconfig", mine, "connect", "-n", "shop")
	t.Cleanup(func() { _, _ = kit.Run("detour", "quit") })
	laptop := kit.Resolver(t)
	for _, name := range []string{
		"catalog.", "catalog.shop.", "catalog.shop.svc.cluster.local.",
		"kubernetes.default.",
	} {
		m, err := kit.AskDNS(laptop, "udp", kit.Question{Name: name, Type: dns.TypeA})
		require.NoError(t, err)
		require.Len(t, m.Answer, 1, name)
		require.False(t, m.RecursionAvailable, name)
	}
}

// The cluster's DNS is never asked for a name outside the cluster, and no other DNS server is asked
// for a name of the cluster.
func TestNamesStayOnTheirSide(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine))
	logs := func() string {
		return kit.Kubectl(t, "-n", "kube-system", "logs", "-l", "k8s-app=kube-dns", "--tail=-1")
	}
	secret := fmt.Sprintf("secret%d", time.Now().UnixNano()) // a name of this run only
	kit.DeployTarget(t)
	before, err := os.ReadFile("/etc/resolv.conf")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.WriteFile("/etc/resolv.conf", before, 0o644)) })
	const office = "127.53.53.53"
	var mu sync.Mutex
	var asked []string
	packets, err := net.ListenPacket("udp", office+":53")
	require.NoError(t, err)
	server := &dns.Server{PacketConn: packets, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		asked = append(asked, strings.ToLower(q.Question[0].Name))
		mu.Unlock()
		_ = w.WriteMsg(new(dns.Msg).SetRcode(q, dns.RcodeNameError))
	})}
	go func() { _ = server.ActivateAndServe() }()
	t.Cleanup(func() { _ = packets.Close() })
	require.NoError(t, os.WriteFile("/etc/resolv.conf", []byte("nameserver "+office+"\nsearch "+secret+".test\n"),
		0o644))

	mine := kit.Developer(t, "nina")
	kit.Detour(t, "--kubeconfig", mine, "connect", "-n", "shop")
	t.Cleanup(func() { _, _ = kit.Run("detour", "quit") })
	laptop := kit.Resolver(t)
	kit.Eventually(t, func() bool {
		m, err := kit.AskDNS(laptop, "udp", kit.Question{Name: "catalog.", Type: dns.TypeA})
		return err == nil && m.RecursionAvailable
	}, "the watches are whole")

	for _, name := range []string{
		"catalog", "catalog.shop", "catalog.shop.svc.cluster.local",
		"absent.shop.svc.cluster.local", "target.other", "target.other.svc.cluster.local",
	} {
		_, _ = exec.Command("getent", "ahosts", name).Output()
	}
	for _, name := range []string{
		"www." + secret + ".com", "private." + secret + ".test",
		"www." + secret + ".com.shop.svc.cluster.local", "private." + secret + ".test.svc.cluster.local",
	} {
		_, _ = exec.Command("getent", "ahosts", name).Output()
	}
	mu.Lock()
	defer mu.Unlock()
	require.Contains(t, asked, "www."+secret+".com.")
	require.Contains(t, asked, "private."+secret+".test.")
	for _, name := range asked {
		require.NotContains(t, name, "catalog")
		require.NotContains(t, name, "target")
		require.NotContains(t, name, "cluster.local")
	}
	var said string
	logged := func() bool { said = logs(); return strings.Contains(said, "target.other.svc.cluster.local.") }
	for deadline := time.Now().Add(20 * time.Second); !logged() && time.Now().Before(deadline); {
		time.Sleep(200 * time.Millisecond)
	}
	if !strings.Contains(said, " NOERROR ") {
		t.Skip("this cluster's DNS does not log what it is asked")
	}
	require.Contains(t, said, "target.other.svc.cluster.local.")
	require.False(t, strings.Contains(said, secret), "the cluster was asked for a name that is not its own")
}
