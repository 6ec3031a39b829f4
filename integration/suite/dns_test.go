package suite

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// question is what both are asked. local says that the laptop must know the answer itself.
type question struct {
	name  string
	kind  uint16
	local bool
}

// resolver is the laptop's DNS server, as any program finds it.
func resolver(t *testing.T) string {
	t.Helper()
	c, err := dns.ClientConfigFromFile("/etc/resolv.conf")
	require.NoError(t, err)
	require.Len(t, c.Servers, 1)
	return net.JoinHostPort(c.Servers[0], "53")
}

func ask(server, network string, q question) (*dns.Msg, error) {
	c := &dns.Client{Net: network, Timeout: 5 * time.Second}
	m, _, err := c.Exchange(new(dns.Msg).SetQuestion(q.name, q.kind).SetEdns0(4096, false), server)
	return m, err
}

// said is an answer without what may differ: the order, the TTL, the zone's serial number, and capitals.
func said(m *dns.Msg) string {
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
	return fmt.Sprintf("%s\nanswer:\n  %s\nauthority:\n  %s\nadditional:\n  %s", dns.RcodeToString[m.Rcode], text(m.Answer), text(m.Ns), text(m.Extra))
}

// compare asks CoreDNS and the laptop the same, until they agree: CoreDNS's own cache is a moment behind.
func compare(t *testing.T, coredns string, all []question) {
	t.Helper()
	laptop := resolver(t)
	local := 0
	deadline := time.Now().Add(30 * time.Second)
	for i, q := range all {
		network := []string{"udp", "tcp"}[i%2]
		for {
			want, err := ask(coredns, network, q)
			if err != nil && time.Now().Before(deadline) {
				continue // a datagram may be lost
			}
			require.NoError(t, err, "%v", q)
			got, err := ask(laptop, network, q)
			require.NoError(t, err, "%v", q)
			if said(want) != said(got) && time.Now().Before(deadline) {
				time.Sleep(200 * time.Millisecond)
				continue
			}
			assert.Equal(t, said(want), said(got), "%s %s", q.name, dns.TypeToString[q.kind])
			// CoreDNS's kubernetes plugin says that it is no recursive resolver. The proxy is one.
			assert.Equal(t, q.local, got.RecursionAvailable, "whether %s %s is known on the laptop", q.name, dns.TypeToString[q.kind])
			if got.RecursionAvailable {
				local++
			}
			break
		}
	}
	t.Logf("%d questions, %d of them answered on the laptop", len(all), local)
}

// dnsQuestions are the questions about shop, each name with each type.
func dnsQuestions(t *testing.T) (all []question) {
	const suffix = ".shop.svc.cluster.local."
	ip := func(name string) string {
		return kubectl(t, "-n", "shop", "get", "service", name, "-o", "jsonpath={.spec.clusterIP}")
	}
	pod := func(namespace, selector string) string {
		return kubectl(t, "-n", namespace, "get", "pod", "-l", selector, "-o", "jsonpath={.items[0].status.podIP}")
	}
	dashed := func(ip string) string { return strings.ReplaceAll(ip, ".", "-") }
	reverse := func(ip string) string {
		name, err := dns.ReverseAddr(ip)
		require.NoError(t, err)
		return name
	}
	db, catalog := pod("shop", "app=db"), pod("shop", "app=catalog")
	here := []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeSRV, dns.TypeCNAME, dns.TypeTXT, dns.TypeMX, dns.TypeHTTPS, dns.TypeNS, dns.TypePTR}
	there := []uint16{dns.TypeANY, dns.TypeSOA, dns.TypeNAPTR, dns.TypeCAA}
	for _, name := range []string{
		"catalog", "CataLog", "db", "db-0.db", "DB-1.db", "db-2.db", dashed(db) + ".db", dashed(db) + ".db-read", "db-0.db-read", dashed(catalog) + ".catalog", "10-1-2-3.catalog",
		"bare", "db-0.bare", "empty", "x.empty", "both", "eager", "slow-0.eager", "strict", "slow-0.strict", "hand", "four.hand", "six.hand", "192-0-2-2.hand", "192-0-2-3.hand", "2001-db8--0.hand",
		"_http._tcp.catalog", "_HTTP._tcp.catalog", "http.tcp.catalog", "_http._udp.catalog", "_grpc._tcp.catalog", "_sql._tcp.db", "_bulk._tcp.db", "_dns._udp.both", "_dns._tcp.both", "_http._tcp.alias",
		"alias", "chain", "pod", "nowhere", "ping", "absent", "x.absent", "a.b.c.catalog", "*", "_http._tcp.absent", "x.alias",
	} {
		for _, kind := range here {
			all = append(all, question{name + suffix, kind, true})
		}
		for _, kind := range there {
			all = append(all, question{name + suffix, kind, false})
		}
	}
	for _, name := range []string{"outside", "elsewhere"} {
		for _, kind := range here {
			all = append(all, question{name + suffix, kind, kind != dns.TypeA && kind != dns.TypeAAAA})
		}
	}
	for _, kind := range slices.Concat(here, there) {
		all = append(all,
			question{"shop.svc.cluster.local.", kind, false}, question{"svc.cluster.local.", kind, false},
			question{"target.other.svc.cluster.local.", kind, false}, question{"_bulk._tcp.target.other.svc.cluster.local.", kind, false}, question{"absent.other.svc.cluster.local.", kind, false},
			question{dashed(db) + ".shop.pod.cluster.local.", kind, false}, question{"x.shop.pod.cluster.local.", kind, false},
			question{"dns-version.cluster.local.", kind, false}, question{"ns.dns.cluster.local.", kind, false})
	}
	// What no search path's name can be is refused here, in CoreDNS's words.
	for _, kind := range []uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT} {
		all = append(all, question{"catalog.nowhere.svc.cluster.local.", kind, true}, question{"www.example.com.svc.cluster.local.", kind, true}, question{"www.example.com.cluster.local.", kind, true})
	}
	for _, kind := range []uint16{dns.TypePTR, dns.TypeA} {
		for _, address := range []string{ip("catalog"), ip("db-read")} {
			all = append(all, question{reverse(address), kind, kind == dns.TypePTR})
		}
		for _, address := range []string{db, pod("other", "app=target"), "10.96.0.1", "10.96.255.254"} {
			all = append(all, question{reverse(address), kind, false})
		}
	}
	return all
}

// What the laptop says of the cluster's names is what CoreDNS says, record by record, for a developer who has no more than the shipped role.
func TestDNSEqualsCoreDNS(t *testing.T) {
	other(t)
	manifest := filepath.Join(os.Getenv("DETOUR_ROOT"), "integration/suite/testdata/dns.yaml")
	kubectl(t, "apply", "-f", manifest)
	t.Cleanup(func() { kubectl(t, "delete", "--ignore-not-found", "--wait=false", "-f", manifest) })
	kubectl(t, "-n", "shop", "rollout", "status", "statefulset/db", "--timeout=120s")
	require.Eventually(t, func() bool {
		return len(strings.Fields(kubectl(t, "-n", "shop", "get", "pods", "-l", "app=slow", "-o", "jsonpath={.items[*].status.podIP}"))) == 2
	}, 60*time.Second, 200*time.Millisecond)

	mine := developer(t, "dora")
	kubectl(t, "-n", "shop", "create", "rolebinding", "dora", "--clusterrole=detour-user", "--serviceaccount=shop:dora")
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "rolebinding", "dora") })
	detour(t, "--kubeconfig", mine, "connect", "-n", "shop")
	t.Cleanup(func() { _, _ = command("detour", "quit") })
	coredns := kubectl(t, "-n", "kube-system", "get", "service", "kube-dns", "-o", "jsonpath={.spec.clusterIP}") + ":53"
	laptop := resolver(t)
	a := func(name string) question { return question{name, dns.TypeA, true} }
	answer := func(name string) []string {
		var all []string
		m, err := ask(laptop, "udp", a(name))
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
	require.Eventually(t, func() bool { m, err := ask(laptop, "udp", a("catalog.")); return err == nil && m.RecursionAvailable }, patience, 50*time.Millisecond, "the watches are whole")

	compare(t, coredns, dnsQuestions(t))

	t.Run("a name is there as soon as it is created", func(t *testing.T) {
		require.Empty(t, answer("fresh."), "and its absence is remembered by CoreDNS")
		_, err := ask(coredns, "udp", a("fresh.shop.svc.cluster.local."))
		require.NoError(t, err)
		kubectl(t, "-n", "shop", "create", "service", "clusterip", "fresh", "--tcp=80")
		created := time.Now()
		require.Eventually(t, func() bool { return len(answer("fresh.")) == 1 }, patience, 5*time.Millisecond)
		t.Logf("resolved %s after kubectl was done", time.Since(created).Round(time.Millisecond))
		compare(t, coredns, []question{a("fresh.shop.svc.cluster.local."), {"fresh.shop.svc.cluster.local.", dns.TypeSRV, true}})
		kubectl(t, "-n", "shop", "delete", "service", "fresh")
		deleted := time.Now()
		require.Eventually(t, func() bool { return len(answer("fresh.")) == 0 }, patience, 5*time.Millisecond)
		t.Logf("gone %s after kubectl was done", time.Since(deleted).Round(time.Millisecond))
		compare(t, coredns, []question{a("fresh.shop.svc.cluster.local."), {"fresh.shop.svc.cluster.local.", dns.TypeSRV, true}})
	})

	t.Run("endpoints move", func(t *testing.T) {
		before := answer("db-0.db.")
		require.Len(t, before, 1)
		kubectl(t, "-n", "shop", "delete", "pod", "db-0")
		kubectl(t, "-n", "shop", "rollout", "status", "statefulset/db", "--timeout=120s")
		require.Eventually(t, func() bool { now := answer("db-0.db."); return len(now) == 1 && now[0] != before[0] }, 30*time.Second, 50*time.Millisecond)
		kubectl(t, "-n", "shop", "scale", "statefulset/db", "--replicas=3")
		kubectl(t, "-n", "shop", "rollout", "status", "statefulset/db", "--timeout=120s")
		require.Eventually(t, func() bool { return len(answer("db.")) == 3 && len(answer("db-2.db.")) == 1 }, patience, 50*time.Millisecond)
		kubectl(t, "-n", "shop", "delete", "service", "both")
		kubectl(t, "-n", "shop", "patch", "service", "alias", "--type=merge", "-p", `{"spec":{"externalName":"db-read.shop.svc.cluster.local"}}`)
		compare(t, coredns, dnsQuestions(t))
	})

	t.Run("short names are those of a pod", func(t *testing.T) {
		for _, c := range []question{
			{"catalog.", dns.TypeA, true},
			{"CATALOG.shop.", dns.TypeA, true},
			{"catalog.shop.svc.", dns.TypeA, true},
			{"db-1.db.", dns.TypeA, true},
			{"db-1.db.shop.", dns.TypeA, true},
			{"_sql._tcp.db.", dns.TypeSRV, true},
			{"_sql._tcp.db.shop.", dns.TypeSRV, true},
			{"target.other.", dns.TypeA, false},
			{"_bulk._tcp.target.other.", dns.TypeSRV, false},
			{"target.other.svc.", dns.TypeA, false},
		} {
			m, err := ask(laptop, "udp", c)
			require.NoError(t, err)
			require.NotEmpty(t, m.Answer, c.name)
			assert.Equal(t, c.name, m.Answer[0].Header().Name)
			assert.Equal(t, c.local, m.RecursionAvailable, c.name)
		}
	})
}

// While a watch is broken, and for who may not watch, the cluster's DNS is asked, and names resolve all the same.
func TestDNSWithoutTheRight(t *testing.T) {
	mine := developer(t, "dan")
	kubectl(t, "-n", "shop", "create", "role", "dan", "--verb=*", "--resource=sessions.detour.dev,intercepts.detour.dev,services,pods")
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "role", "dan") })
	kubectl(t, "-n", "shop", "create", "rolebinding", "dan", "--role=dan", "--serviceaccount=shop:dan")
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "rolebinding", "dan") })
	detour(t, "--kubeconfig", mine, "connect", "-n", "shop")
	t.Cleanup(func() { _, _ = command("detour", "quit") })
	laptop := resolver(t)
	for _, name := range []string{"catalog.", "catalog.shop.", "catalog.shop.svc.cluster.local.", "kubernetes.default."} {
		m, err := ask(laptop, "udp", question{name: name, kind: dns.TypeA})
		require.NoError(t, err)
		require.Len(t, m.Answer, 1, name)
		require.False(t, m.RecursionAvailable, name)
	}
}

// What is not the cluster's is not told to it, and what is the cluster's is told to nobody else.
func TestNamesStayOnTheirSide(t *testing.T) {
	logs := func() string { return kubectl(t, "-n", "kube-system", "logs", "-l", "k8s-app=kube-dns", "--tail=-1") }
	secret := fmt.Sprintf("secret%d", time.Now().UnixNano()) // no other test asks for that
	other(t)
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
	require.NoError(t, os.WriteFile("/etc/resolv.conf", []byte("nameserver "+office+"\nsearch "+secret+".test\n"), 0o644))

	mine := developer(t, "nina")
	kubectl(t, "-n", "shop", "create", "rolebinding", "nina", "--clusterrole=detour-user", "--serviceaccount=shop:nina")
	t.Cleanup(func() { kubectl(t, "-n", "shop", "delete", "rolebinding", "nina") })
	detour(t, "--kubeconfig", mine, "connect", "-n", "shop")
	t.Cleanup(func() { _, _ = command("detour", "quit") })
	laptop := resolver(t)
	require.Eventually(t, func() bool {
		m, err := ask(laptop, "udp", question{name: "catalog.", kind: dns.TypeA})
		return err == nil && m.RecursionAvailable
	}, patience, 50*time.Millisecond, "the watches are whole")

	for _, name := range []string{"catalog", "catalog.shop", "catalog.shop.svc.cluster.local", "absent.shop.svc.cluster.local", "target.other", "target.other.svc.cluster.local"} {
		_, _ = exec.Command("getent", "ahosts", name).Output()
	}
	for _, name := range []string{"www." + secret + ".com", "private." + secret + ".test", "www." + secret + ".com.shop.svc.cluster.local", "private." + secret + ".test.svc.cluster.local"} {
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
	for deadline := time.Now().Add(20 * time.Second); !logged() && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
	}
	if !strings.Contains(said, " NOERROR ") {
		t.Skip("this cluster's DNS does not log what it is asked")
	}
	require.Contains(t, said, "target.other.svc.cluster.local.")
	require.False(t, strings.Contains(said, secret), "the cluster was asked for a name that is not its own")
}
