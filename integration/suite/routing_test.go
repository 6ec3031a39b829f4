package suite

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"
)

// curl returns a page. Unlike this process, which reads /etc/resolv.conf again after 5 s, it knows the resolver of the moment.
func curl(t *testing.T, url string) string {
	t.Helper()
	out, err := exec.Command("curl", "-sS", "--max-time", "10", url).CombinedOutput()
	require.NoError(t, err, "%s: %s", url, out)
	return string(out)
}

// device is the interface that a packet of this laptop's would leave by.
func device(t *testing.T, to string) string {
	t.Helper()
	out, err := exec.Command("ip", "-json", "route", "get", to).Output()
	require.NoError(t, err, to)
	var all []struct{ Dev string }
	require.NoError(t, json.Unmarshal(out, &all))
	require.Len(t, all, 1)
	return all[0].Dev
}

func clusterIP(t *testing.T, namespace, service string) string {
	t.Helper()
	return kubectl(t, "-n", namespace, "get", "service", service, "-o", "jsonpath={.spec.clusterIP}")
}

// lan gives this laptop a network of its own in the middle of the cluster's services, around catalog, and returns its address there.
func lan(t *testing.T, catalog string) netip.Prefix {
	t.Helper()
	network, err := netip.MustParseAddr(catalog).Prefix(24)
	require.NoError(t, err)
	own := network.Addr().Next()
	if own.String() == catalog {
		own = own.Next()
	}
	address := netip.PrefixFrom(own, 24)
	for _, args := range []string{"tuntap add dev lan0 mode tun", "addr add " + address.String() + " dev lan0", "link set lan0 up"} {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		require.NoError(t, err, string(out))
		if strings.HasPrefix(args, "tuntap") {
			t.Cleanup(func() { _ = exec.Command("ip", "tuntap", "del", "dev", "lan0", "mode", "tun").Run() })
		}
	}
	return address
}

func TestCollisionWithALAN(t *testing.T) {
	catalog := clusterIP(t, "shop", "catalog")
	address := lan(t, catalog)
	network := address.Masked()
	before := hostState(t)
	addressed := func(name string) string {
		m, err := ask(resolver(t), "udp", question{name: name, kind: dns.TypeA})
		if err != nil || len(m.Answer) != 1 {
			return fmt.Sprint(err, m)
		}
		return m.Answer[0].(*dns.A).A.String()
	}

	t.Run("is said before anything is changed", func(t *testing.T) {
		said := refused(t, "connect", "-n", "shop")
		require.Contains(t, said, "interface lan0 has the address "+address.String())
		for _, remedy := range []string{"--map-subnet auto", "--never-proxy " + network.String(), "--also-proxy ", "--rootless"} {
			require.Contains(t, said, remedy)
		}
		require.Equal(t, before, hostState(t))
		require.Equal(t, "not connected", detour(t, "status"))
		require.NotContains(t, kubectl(t, "get", "sessions", "-A"), "shop")
	})

	t.Run("the LAN stays", func(t *testing.T) {
		detour(t, "connect", "-n", "shop", "--never-proxy", network.String())
		defer detour(t, "quit")
		require.Equal(t, "lan0", device(t, catalog))
		require.Contains(t, curl(t, "http://kubernetes.default.svc:443"), "HTTP request to an HTTPS server", "another service")
	})

	t.Run("the LAN is given up", func(t *testing.T) {
		detour(t, "connect", "-n", "shop", "--also-proxy", network.String())
		defer detour(t, "quit")
		require.Equal(t, "cluster", editionOf(curl(t, "http://catalog.shop/")))
	})

	t.Run("the cluster is seen elsewhere", func(t *testing.T) {
		detour(t, "connect", "-n", "shop", "--map-subnet", "auto")
		defer detour(t, "quit")
		require.Equal(t, "lan0", device(t, catalog))
		require.Contains(t, detour(t, "status"), " is seen at ")
		ip := addressed("catalog.shop.")
		require.NotEqual(t, catalog, ip)
		require.Regexp(t, "^detour", device(t, ip))
		for _, url := range []string{"http://catalog.shop/", "http://" + ip + "/", "http://catalog.shop.svc.cluster.local/"} {
			require.Equal(t, "cluster", editionOf(curl(t, url)), url)
		}
		_, err := net.DialTimeout("tcp", net.JoinHostPort(ip, "9"), time.Second)
		require.Error(t, err)

		// A datagram to the cluster's own DNS, which says where catalog really is.
		m, err := ask(net.JoinHostPort(addressed("kube-dns.kube-system."), "53"), "udp", question{name: "catalog.shop.svc.cluster.local.", kind: dns.TypeA})
		require.NoError(t, err)
		require.Len(t, m.Answer, 1)
		require.Equal(t, catalog, m.Answer[0].(*dns.A).A.String())

		reverse, err := dns.ReverseAddr(ip)
		require.NoError(t, err)
		m, err = ask(resolver(t), "udp", question{name: reverse, kind: dns.TypePTR})
		require.NoError(t, err)
		require.Len(t, m.Answer, 1)
		require.Equal(t, "catalog.shop.svc.cluster.local.", m.Answer[0].(*dns.PTR).Ptr)
	})

	t.Run("namespaces have no LAN", func(t *testing.T) {
		u := ordinaryUser(t)
		u.detour("connect", "-n", "shop")
		t.Cleanup(func() { u.try("quit") })
		require.Equal(t, "cluster", editionOf(u.inside("curl", "-sS", "--max-time", "10", "http://catalog.shop/")))
		u.detour("quit")

		u.detour("connect", "-n", "shop", "--map-subnet", network.String()+"=172.20.5.0/24", "--never-proxy", clusterIP(t, "shop", "stock"))
		require.Contains(t, u.inside("getent", "ahostsv4", "catalog.shop"), "172.20.5.")
		require.Equal(t, "cluster", editionOf(u.inside("curl", "-sS", "--max-time", "10", "http://catalog.shop/")))
		u.detour("quit")
		requireNothingRuns(t)
	})
	require.Equal(t, before, hostState(t))
}

func TestRoutesAsWished(t *testing.T) {
	server := kubectl(t, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
	host, _, err := net.SplitHostPort(strings.TrimPrefix(server, "https://"))
	require.NoError(t, err)
	api := netip.MustParseAddr(host)
	around, err := api.Prefix(24)
	require.NoError(t, err)
	node := kubectl(t, "get", "node", "-o", `jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
	node = strings.Fields(node)[0]
	frontend := clusterIP(t, "shop", "frontend")
	before := device(t, api.String())

	connected := []string{"connect", "-n", "shop", "--also-proxy", around.String(), "--never-proxy", frontend, "--map", "shelf.test=catalog.shop", "--map", "shelf.two.test=" + clusterIP(t, "shop", "catalog"), "--exclude-suffix", "stock.shop", "--include-suffix", "default"}
	detour(t, connected...)
	t.Cleanup(func() { detour(t, "quit") })
	require.Equal(t, before, device(t, api.String()), "the tunnel does not lead into itself")
	require.Regexp(t, "^detour", device(t, node))
	require.NotRegexp(t, "^detour", device(t, frontend))
	require.Regexp(t, "^detour", device(t, clusterIP(t, "shop", "catalog")))
	for _, url := range []string{"http://catalog.shop/", "http://shelf.test/", "http://shelf.two.test/"} {
		require.Equal(t, "cluster", editionOf(curl(t, url)), url)
	}
	c, err := net.DialTimeout("tcp", net.JoinHostPort(node, "10250"), 5*time.Second)
	require.NoError(t, err, "the kubelet, by way of the cluster")
	_ = c.Close()
	// Excluded, and so a matter of the internet; the whole name is the cluster's as ever.
	m, err := ask(resolver(t), "udp", question{name: "stock.shop.", kind: dns.TypeA})
	require.NoError(t, err)
	require.Empty(t, m.Answer)
	m, err = ask(resolver(t), "udp", question{name: "stock.shop.svc.cluster.local.", kind: dns.TypeA})
	require.NoError(t, err)
	require.Len(t, m.Answer, 1)
	// Included, and so asked of the cluster as it is, which knows no such name.
	m, err = ask(resolver(t), "udp", question{name: "kubernetes.default.", kind: dns.TypeA})
	require.NoError(t, err)
	require.Empty(t, m.Answer)

	t.Run("connect twice", func(t *testing.T) {
		detour(t, "connect", "-n", "shop")
		detour(t, connected...)
		require.Contains(t, refused(t, "connect", "-n", "shop", "--never-proxy", "10.1.0.0/16"), "already connected with another --never-proxy: run `detour quit` first")
		require.Contains(t, refused(t, "connect", "-n", "default"), "already connected to namespace shop")
	})

	t.Run("bad flags are said before anything is done", func(t *testing.T) {
		require.Contains(t, refused(t, "connect", "--also-proxy", "10.1.0.0/99"), "--also-proxy 10.1.0.0/99 is not a network")
		require.Contains(t, refused(t, "connect", "--map", "x"), "--map x is not NAME=TARGET")
	})
}

// The networks behind the VIF are those that the cluster has, not those that it had.
func TestRoutesFollowTheCluster(t *testing.T) {
	connected(t)
	apply := func(manifest string) {
		cmd := exec.Command("kubectl", "apply", "-f", "-")
		cmd.Stdin = strings.NewReader(manifest)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	leads := func(to string) func() bool {
		return func() bool { return strings.HasPrefix(device(t, to), "detour") }
	}
	require.False(t, leads("10.211.3.4")())

	apply(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"}, "spec": {"podCIDR": "10.211.3.0/24", "podCIDRs": ["10.211.3.0/24"], "unschedulable": true}}`)
	t.Cleanup(func() { kubectl(t, "delete", "node", "ghost", "--ignore-not-found") })
	require.Eventually(t, leads("10.211.3.4"), patience, 100*time.Millisecond)

	apply(`{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"}, "spec": {"cidrs": ["10.212.0.0/24"]}}`)
	t.Cleanup(func() { kubectl(t, "delete", "servicecidr", "more", "--ignore-not-found", "--wait=false") })
	require.Eventually(t, leads("10.212.0.9"), patience, 100*time.Millisecond)

	kubectl(t, "delete", "node", "ghost")
	kubectl(t, "delete", "servicecidr", "more", "--wait=false")
	require.Eventually(t, func() bool { return !leads("10.211.3.4")() }, patience, 100*time.Millisecond)
	require.Eventually(t, func() bool { return !leads("10.212.0.9")() }, patience, 100*time.Millisecond)
	require.Equal(t, "cluster", edition(t, "http://catalog.shop/"))
}
