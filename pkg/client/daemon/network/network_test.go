package network

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/rest"

	detour "github.com/detour-dev/detour/pkg/apis/detour/v1alpha1"
	"github.com/detour-dev/detour/pkg/client/ipc"
	"github.com/detour-dev/detour/pkg/dnsproxy"
	"github.com/detour-dev/detour/pkg/vif/wgkey"
)

// The tunnel must not reach the traffic-manager through itself.
func TestDirectAddressesLeavesOutThoseBehindARoute(t *testing.T) {
	routes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	names := map[string][]netip.Addr{
		"192.0.2.1": {netip.MustParseAddr("192.0.2.1")}, "10.1.2.3": {netip.MustParseAddr("10.1.2.3")},
		"lb.example.com": {netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")},
	}
	for name, c := range map[string]struct {
		endpoints []string
		want      []string
	}{
		"an address":                {endpoints: []string{"192.0.2.1:7844"}, want: []string{"192.0.2.1:7844"}},
		"an address behind a route": {endpoints: []string{"10.1.2.3:7844"}},
		"a name with two addresses": {
			endpoints: []string{"lb.example.com:7844"}, want: []string{"192.0.2.1:7844", "192.0.2.2:7844"},
		},
		"the same address twice": {
			endpoints: []string{"192.0.2.1:7844", "lb.example.com:7844"},
			want:      []string{"192.0.2.1:7844", "192.0.2.2:7844"},
		},
		"an unknown name": {endpoints: []string{"nowhere.example.com:7844"}},
		"not an endpoint": {endpoints: []string{"192.0.2.1", "192.0.2.1:none", ":"}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			lookUp := func(host string) []netip.Addr { return names[host] }
			for _, a := range directAddresses(c.endpoints, routes, lookUp) {
				got = append(got, a.String())
			}
			assert.Equal(t, c.want, got)
		})
	}
}

func TestServerAddresses(t *testing.T) {
	proxy := func(*http.Request) (*url.URL, error) { return url.Parse("http://192.0.2.9:3128") }
	for name, c := range map[string]struct {
		config *rest.Config
		want   []string
	}{
		"an address": {config: &rest.Config{Host: "https://192.0.2.1:6443"}, want: []string{"192.0.2.1"}},
		"IPv6":       {config: &rest.Config{Host: "https://[2001:db8::1]:6443"}, want: []string{"2001:db8::1"}},
		"with a proxy": {
			config: &rest.Config{Host: "https://192.0.2.1", Proxy: proxy}, want: []string{"192.0.2.1", "192.0.2.9"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			all, err := serverAddresses(t.Context(), c.config)
			require.NoError(t, err)
			var got []string
			for _, a := range all {
				got = append(got, a.String())
			}
			assert.Equal(t, c.want, got)
		})
	}
	_, err := serverAddresses(t.Context(), &rest.Config{Host: "ht tp://x"})
	require.ErrorContains(t, err, "the API server's address")
}

// Nothing of the laptop is changed for a status that makes no sense.
func TestUpRejectsAWrongStatus(t *testing.T) {
	key, err := wgkey.NewPrivate()
	require.NoError(t, err)
	good := key.Public().String()
	for name, c := range map[string]struct {
		status detour.SessionStatus
		err    string
	}{
		"a wrong key": {status: detour.SessionStatus{ManagerPublicKey: "key"}, err: "the traffic-manager's key"},
		"a wrong address": {
			status: detour.SessionStatus{ManagerPublicKey: good, Addresses: []string{"x"}}, err: "the laptop's address",
		},
		"a wrong network": {
			status: detour.SessionStatus{
				ManagerPublicKey: good, Addresses: []string{"198.18.0.2"}, Subnets: []string{"10.0.0.0/99"},
			},
			err: "the cluster's networks",
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, err := Up(t.Context(), Config{
				Cluster: &rest.Config{Host: "https://192.0.2.1"}, Status: c.status, Key: key, Progress: func(string) {},
				Log:        slog.New(slog.DiscardHandler),
				ManagerPod: func(context.Context) (string, error) { return "", nil },
			})
			require.ErrorContains(t, err, c.err)
			require.Nil(t, n)
		})
	}
}

// Running programs see a change only if the file stays the same one.
func TestSetResolverKeepsTheFile(t *testing.T) {
	dir := t.TempDir()
	n := &Namespaces{paths: ipc.Paths{Run: dir, State: dir}}
	path := n.paths.RootlessResolvConf()
	require.NoError(t, os.WriteFile(path, nil, 0o644))
	before, err := os.Stat(path)
	require.NoError(t, err)
	host := dir + "/host"
	require.NoError(t, os.WriteFile(host, []byte("nameserver 192.0.2.53\n"), 0o644))
	server := netip.MustParseAddr("198.18.0.2")
	files := dnsproxy.ResolvConf{Path: host, State: dir}
	require.NoError(t, n.setResolver(files, server, []string{"shop.svc.cluster.local"}))
	after, err := os.Stat(path)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Contains(t, string(text), "nameserver 198.18.0.2")
	require.Contains(t, string(text), "shop.svc.cluster.local")
}

// A nil *Namespaces stands for the laptop itself.
func TestNoNamespaces(t *testing.T) {
	var none *Namespaces
	none.Close()
	l, err := none.place().Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

func TestCloseRunsTheLastFirst(t *testing.T) {
	n := &Network{}
	var order []int
	for i := range 3 {
		n.onClose(func() { order = append(order, i) })
	}
	n.Close()
	n.Close()
	require.Equal(t, []int{2, 1, 0}, order)
}
