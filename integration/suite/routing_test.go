package suite

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/integration/suite/kit"
)

// lan gives this machine a network in the middle of the cluster's services, around the catalog, and
// returns the machine's address there.
func lan(t *testing.T, catalog string) netip.Prefix {
	t.Helper()
	network, err := netip.MustParseAddr(catalog).Prefix(24)
	require.NoError(t, err)
	own := network.Addr().Next()
	if own.String() == catalog {
		own = own.Next()
	}
	address := netip.PrefixFrom(own, 24)
	for _, args := range []string{
		"tuntap add dev lan0 mode tun", "addr add " + address.String() + " dev lan0",
		"link set lan0 up",
	} {
		out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
		require.NoError(t, err, string(out))
		if strings.HasPrefix(args, "tuntap") {
			t.Cleanup(func() { _ = exec.Command("ip", "tuntap", "del", "dev", "lan0", "mode", "tun").Run() })
		}
	}
	return address
}

func TestCollisionWithALAN(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine), kit.Uses(kit.Catalog, kit.Stock))
	catalog := kit.ClusterIP(t, "shop", "catalog")
	address := lan(t, catalog)
	network := address.Masked()
	before := kit.HostState(t)
	addressed := func(name string) string {
		m, err := kit.AskDNS(kit.Resolver(t), "udp", kit.Question{Name: name, Type: dns.TypeA})
		if err != nil || len(m.Answer) != 1 {
			return fmt.Sprint(err, m)
		}
		return m.Answer[0].(*dns.A).A.String()
	}

	t.Run("is said before anything is changed", func(t *testing.T) {
		said := kit.DetourFails(t, "connect", "-n", "shop")
		require.Contains(t, said, "interface lan0 has the address "+address.String())
		for _, remedy := range []string{
			"--map-subnet auto", "--never-proxy " + network.String(), "--also-proxy ",
			"--rootless",
		} {
			require.Contains(t, said, remedy)
		}
		require.Equal(t, before, kit.HostState(t))
		require.Equal(t, "not connected", kit.Detour(t, "status"))
		require.Empty(t, kit.SessionsOf(t, kit.HostName(t)))
	})

	t.Run("the LAN stays", func(t *testing.T) {
		kit.Detour(t, "connect", "-n", "shop", "--never-proxy", network.String())
		defer kit.Detour(t, "quit")
		require.Equal(t, "lan0", kit.RouteDevice(t, catalog))
		require.Contains(t, kit.Curl(t, "http://kubernetes.default.svc:443"), "HTTP request to an HTTPS server",
			"another service")
	})

	t.Run("the LAN is given up", func(t *testing.T) {
		kit.Detour(t, "connect", "-n", "shop", "--also-proxy", network.String())
		defer kit.Detour(t, "quit")
		require.Equal(t, "cluster", kit.EditionOf(kit.Curl(t, "http://catalog.shop/")))
	})

	t.Run("the cluster is seen elsewhere", func(t *testing.T) {
		kit.Detour(t, "connect", "-n", "shop", "--map-subnet", "auto")
		defer kit.Detour(t, "quit")
		require.Equal(t, "lan0", kit.RouteDevice(t, catalog))
		require.Contains(t, kit.Detour(t, "status"), " is seen at ")
		ip := addressed("catalog.shop.")
		require.NotEqual(t, catalog, ip)
		require.Regexp(t, "^detour", kit.RouteDevice(t, ip))
		for _, url := range []string{
			"http://catalog.shop/", "http://" + ip + "/",
			"http://catalog.shop.svc.cluster.local/",
		} {
			require.Equal(t, "cluster", kit.EditionOf(kit.Curl(t, url)), url)
		}
		_, err := net.DialTimeout("tcp", net.JoinHostPort(ip, "9"), time.Second)
		require.Error(t, err)

		// A datagram to the cluster's own DNS, which says where catalog really is.
		m, err := kit.AskDNS(net.JoinHostPort(addressed("kube-dns.kube-system."), "53"), "udp",
			kit.Question{Name: "catalog.shop.svc.cluster.local.", Type: dns.TypeA})
		require.NoError(t, err)
		require.Len(t, m.Answer, 1)
		require.Equal(t, catalog, m.Answer[0].(*dns.A).A.String())

		reverse, err := dns.ReverseAddr(ip)
		require.NoError(t, err)
		m, err = kit.AskDNS(kit.Resolver(t), "udp", kit.Question{Name: reverse, Type: dns.TypePTR})
		require.NoError(t, err)
		require.Len(t, m.Answer, 1)
		require.Equal(t, "catalog.shop.svc.cluster.local.", m.Answer[0].(*dns.PTR).Ptr)
	})

	t.Run("namespaces have no LAN", func(t *testing.T) {
		u := kit.NewUser(t)
		u.Detour("connect", "-n", "shop")
		t.Cleanup(func() { u.Try("quit") })
		require.Equal(t, "cluster", kit.EditionOf(u.Inside("curl", "-sS", "--max-time", "10", "http://catalog.shop/")))
		u.Detour("quit")

		u.Detour("connect", "-n", "shop", "--map-subnet", network.String()+"=172.20.5.0/24", "--never-proxy",
			kit.ClusterIP(t, "shop", "stock"))
		require.Contains(t, u.Inside("getent", "ahostsv4", "catalog.shop"), "172.20.5.")
		require.Equal(t, "cluster", kit.EditionOf(u.Inside("curl", "-sS", "--max-time", "10", "http://catalog.shop/")))
		u.Detour("quit")
		u.WaitForNoProcess()
	})
	require.Equal(t, before, kit.HostState(t))
}

func TestNetworkOverrides(t *testing.T) {
	kit.Parallel(t, kit.Changes(kit.Machine), kit.Uses(kit.Catalog))
	server := kit.Kubectl(t, "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
	host, _, err := net.SplitHostPort(strings.TrimPrefix(server, "https://"))
	require.NoError(t, err)
	api := netip.MustParseAddr(host)
	around, err := api.Prefix(24)
	require.NoError(t, err)
	node := kit.Kubectl(t, "get", "node", "-o",
		`jsonpath={.items[0].status.addresses[?(@.type=="InternalIP")].address}`)
	node = strings.Fields(node)[0]
	frontend := kit.ClusterIP(t, "shop", "frontend")
	before := kit.RouteDevice(t, api.String())

	connected := []string{
		"connect", "-n", "shop", "--also-proxy", around.String(), "--never-proxy", frontend,
		"--map", "shelf.test=catalog.shop", "--map", "shelf.two.test=" + kit.ClusterIP(t, "shop", "catalog"),
		"--exclude-suffix", "stock.shop", "--include-suffix", "default",
	}
	kit.Detour(t, connected...)
	t.Cleanup(func() { kit.Detour(t, "quit") })
	require.Equal(t, before, kit.RouteDevice(t, api.String()), "the tunnel does not lead into itself")
	require.Regexp(t, "^detour", kit.RouteDevice(t, node))
	require.NotRegexp(t, "^detour", kit.RouteDevice(t, frontend))
	require.Regexp(t, "^detour", kit.RouteDevice(t, kit.ClusterIP(t, "shop", "catalog")))
	for _, url := range []string{"http://catalog.shop/", "http://shelf.test/", "http://shelf.two.test/"} {
		require.Equal(t, "cluster", kit.EditionOf(kit.Curl(t, url)), url)
	}
	c, err := net.DialTimeout("tcp", net.JoinHostPort(node, "10250"), 5*time.Second)
	require.NoError(t, err, "the kubelet, by way of the cluster")
	_ = c.Close()
	// An excluded name belongs to the internet. The full name still belongs to the cluster.
	m, err := kit.AskDNS(kit.Resolver(t), "udp", kit.Question{Name: "stock.shop.", Type: dns.TypeA})
	require.NoError(t, err)
	require.Empty(t, m.Answer)
	m, err = kit.AskDNS(kit.Resolver(t), "udp", kit.Question{Name: "stock.shop.svc.cluster.local.", Type: dns.TypeA})
	require.NoError(t, err)
	require.Len(t, m.Answer, 1)
	// An included name is sent to the cluster unchanged, and the cluster does not know it.
	m, err = kit.AskDNS(kit.Resolver(t), "udp", kit.Question{Name: "kubernetes.default.", Type: dns.TypeA})
	require.NoError(t, err)
	require.Empty(t, m.Answer)

	t.Run("connect twice", func(t *testing.T) {
		kit.Detour(t, "connect", "-n", "shop")
		kit.Detour(t, connected...)
		require.Contains(t, kit.DetourFails(t, "connect", "-n", "shop", "--never-proxy", "10.1.0.0/16"),
			"already connected with another --never-proxy: run `detour quit` first")
		require.Contains(t, kit.DetourFails(t, "connect", "-n", "default"), "already connected to namespace shop")
	})

	t.Run("bad flags are said before anything is done", func(t *testing.T) {
		require.Contains(t, kit.DetourFails(t, "connect", "--also-proxy", "10.1.0.0/99"),
			"--also-proxy 10.1.0.0/99 is not a network")
		require.Contains(t, kit.DetourFails(t, "connect", "--map", "x"), "--map x is not NAME=TARGET")
	})
}

// The routes to the VIF follow the networks that the cluster has now.
func TestRoutesFollowTheCluster(t *testing.T) {
	kit.Connect(t)
	apply := func(manifest string) {
		cmd := exec.Command("kubectl", "apply", "-f", "-")
		cmd.Stdin = strings.NewReader(manifest)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, string(out))
	}
	leads := func(to string) func() bool {
		return func() bool { return strings.HasPrefix(kit.RouteDevice(t, to), "detour") }
	}
	require.False(t, leads("10.211.3.4")())

	apply(`{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "ghost"},
		"spec": {"podCIDR": "10.211.3.0/24", "podCIDRs": ["10.211.3.0/24"], "unschedulable": true}}`)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "node", "ghost", "--ignore-not-found") })
	kit.Eventually(t, leads("10.211.3.4"))

	apply(`{"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "more"},
		"spec": {"cidrs": ["10.212.0.0/24"]}}`)
	t.Cleanup(func() { kit.Kubectl(t, "delete", "servicecidr", "more", "--ignore-not-found", "--wait=false") })
	kit.Eventually(t, leads("10.212.0.9"))

	kit.Kubectl(t, "delete", "node", "ghost")
	kit.Kubectl(t, "delete", "servicecidr", "more", "--wait=false")
	kit.Eventually(t, func() bool { return !leads("10.211.3.4")() })
	kit.Eventually(t, func() bool { return !leads("10.212.0.9")() })
	require.Equal(t, "cluster", kit.Edition(t, "http://catalog.shop/"))
}
