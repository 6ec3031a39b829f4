package routes

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func nets(texts ...string) (all []netip.Prefix) {
	for _, t := range texts {
		all = append(all, netip.MustParsePrefix(t))
	}
	return all
}

func addrs(texts ...string) (all []netip.Addr) {
	for _, t := range texts {
		all = append(all, netip.MustParseAddr(t))
	}
	return all
}

func TestPlan(t *testing.T) {
	laptop := []HostNetwork{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Interface: "wlan0"},
		{Prefix: netip.MustParsePrefix("0.0.0.0/1"), Interface: "vpn0"},
		{Prefix: netip.MustParsePrefix("2000::/3"), Interface: "wlan0"},
		{Prefix: netip.MustParsePrefix("192.168.1.7/24"), Interface: "wlan0", Address: true},
		{Prefix: netip.MustParsePrefix("192.168.1.0/24"), Interface: "wlan0"},
	}
	lan := append(laptop[:len(laptop):len(laptop)],
		HostNetwork{Prefix: netip.MustParsePrefix("10.96.5.7/24"), Interface: "eth0", Address: true},
		HostNetwork{Prefix: netip.MustParsePrefix("10.96.5.0/24"), Interface: "eth0"})
	vpn := append(laptop[:len(laptop):len(laptop)], HostNetwork{
		Prefix:    netip.MustParsePrefix("10.0.0.0/8"),
		Interface: "vpn0",
	})
	subnets := []string{"10.96.0.0/16", "10.244.0.0/24", "fd96::/112"}
	for name, c := range map[string]struct {
		also, never, maps []string
		subnets           []string
		nodes, server     []string
		host              []HostNetwork
		want              string // the routes
		remap             string
		collisions        string
		fails             string
	}{
		"nothing special": {host: laptop, want: "10.96.0.0/16 10.244.0.0/24 fd96::/112"},
		"neighbours are one route": {
			subnets: []string{"10.244.0.0/24", "10.244.1.0/24"}, want: "10.244.0.0/23",
		},
		"also": {
			also: []string{"10.1.2.3", "172.20.1.1/16"},
			host: laptop,
			want: "10.1.2.3/32 10.96.0.0/16 10.244.0.0/24 172.20.0.0/16 fd96::/112",
		},
		"never, a part": {
			never: []string{"10.96.0.0/17"},
			host:  laptop,
			want:  "10.96.128.0/17 10.244.0.0/24 fd96::/112",
		},
		"never, all": {never: []string{"10.0.0.0/8"}, host: laptop, want: "fd96::/112"},
		"never wins over also": {
			also:  []string{"10.0.0.0/8"},
			never: []string{"10.0.0.0/9"},
			host:  laptop,
			want:  "10.128.0.0/9 fd96::/112",
		},
		"the API server in the cluster's network": {
			subnets: []string{"10.0.0.0/30"},
			server:  []string{"10.0.0.1"},
			host:    laptop,
			want:    "10.0.0.0/32 10.0.0.2/31",
		},
		"the API server in --also-proxy": {
			also:    []string{"172.30.0.0/31"},
			server:  []string{"172.30.0.1"},
			subnets: []string{"10.96.0.0/16"},
			host:    laptop,
			want:    "10.96.0.0/16 172.30.0.0/32",
		},
		"nodes among pods": {
			subnets: []string{"10.0.0.0/30"},
			nodes:   []string{"10.0.0.2"},
			host:    laptop,
			want:    "10.0.0.0/31 10.0.0.3/32",
		},
		"nodes that are asked for": {
			subnets: []string{"10.0.0.0/30"},
			also:    []string{"10.0.0.2/32"},
			nodes:   []string{"10.0.0.2"},
			host:    laptop,
			want:    "10.0.0.0/30",
		},

		"a LAN in the cluster's network": {
			host:       lan,
			want:       "10.244.0.0/24 fd96::/112",
			collisions: "10.96.0.0/16: interface eth0 has the address 10.96.5.7/24",
		},
		"a VPN around it": {
			host: vpn,
			want: "fd96::/112",
			collisions: "10.96.0.0/16: interface vpn0 has the route 10.0.0.0/8, " +
				"10.244.0.0/24: interface vpn0 has the route 10.0.0.0/8",
		},
		"the LAN stays": {
			never:   []string{"10.96.5.0/24"},
			subnets: []string{"10.96.4.0/23"},
			host:    lan,
			want:    "10.96.4.0/24",
		},
		"the LAN is given up": {
			also: []string{"10.96.0.0/16"},
			host: lan,
			want: "10.96.0.0/16 10.96.5.0/25 10.96.5.128/25 10.244.0.0/24 fd96::/112",
		},
		"the LAN itself is given up": {
			also:    []string{"10.96.5.0/24"},
			subnets: []string{"10.244.0.0/24"},
			host:    lan,
			want:    "10.96.5.0/25 10.96.5.128/25 10.244.0.0/24",
		},
		"only the API server is the LAN's": {
			subnets: []string{"10.96.5.0/31"},
			server:  []string{"10.96.5.0"},
			host:    []HostNetwork{{Prefix: netip.MustParsePrefix("10.96.5.0/32"), Interface: "eth0"}},
			want:    "10.96.5.1/32",
		},

		"seen elsewhere": {
			maps:  []string{"10.96.0.0/16=198.19.0.0/16"},
			host:  lan,
			want:  "10.244.0.0/24 198.19.0.0/16 fd96::/112",
			remap: "10.96.0.0/16=198.19.0.0/16",
		},
		"a part is seen elsewhere": {
			maps:    []string{"10.96.5.0/24=172.20.1.0/24"},
			subnets: []string{"10.96.4.0/23"},
			host:    lan,
			want:    "10.96.4.0/24 172.20.1.0/24",
			remap:   "10.96.5.0/24=172.20.1.0/24",
		},
		"more than there is is seen": {
			maps:    []string{"10.96.0.0/16=172.20.0.0/16"},
			subnets: []string{"10.96.5.0/24"},
			host:    lan,
			want:    "172.20.5.0/24",
			remap:   "10.96.0.0/16=172.20.0.0/16",
		},
		"never, and seen elsewhere": {
			maps:    []string{"10.96.0.0/16=198.19.0.0/16"},
			never:   []string{"10.96.0.0/17"},
			subnets: []string{"10.96.0.0/16"},
			host:    lan,
			want:    "198.19.128.0/17",
			remap:   "10.96.0.0/16=198.19.0.0/16",
		},
		"a place is found for one": {
			maps:  []string{"10.96.0.0/16=auto"},
			host:  lan,
			want:  "10.244.0.0/24 198.19.0.0/16 fd96::/112",
			remap: "10.96.0.0/16=198.19.0.0/16",
		},
		"places are found for all": {
			maps:  []string{"auto"},
			host:  vpn,
			want:  "100.64.0.0/24 198.19.0.0/16 fd96::/112",
			remap: "10.96.0.0/16=198.19.0.0/16 10.244.0.0/24=100.64.0.0/24",
		},
		"auto, and nothing to do": {
			maps: []string{"auto"},
			host: laptop,
			want: "10.96.0.0/16 10.244.0.0/24 fd96::/112",
		},
		"IPv6": {
			maps: []string{"auto"},
			host: []HostNetwork{
				{Prefix: netip.MustParsePrefix("fd96::1/64"), Interface: "wlan0", Address: true},
				{Prefix: netip.MustParsePrefix("fd64:6574::/96"), Interface: "wlan0"},
			},
			want: "10.96.0.0/16 10.244.0.0/24 fd64:6574::1:0:0/112", remap: "fd96::/112=fd64:6574::1:0:0/112",
		},

		"the place is taken too": {
			maps:  []string{"10.96.0.0/16=192.168.0.0/16"},
			host:  lan,
			fails: "192.168.0.0/16 is in use on this laptop itself (interface wlan0 has the address 192.168.1.7/24)",
		},
		"the place is the cluster's": {
			maps:  []string{"10.96.0.0/16=10.244.0.0/16"},
			host:  laptop,
			fails: "10.244.0.0/24 is a network of the cluster too",
		},
		"two at one place": {
			maps:  []string{"10.96.0.0/16=198.19.0.0/16", "10.97.0.0/16=198.19.0.0/16"},
			host:  laptop,
			fails: "overlap",
		},
		"no place is large enough": {
			maps:  []string{"10.0.0.0/8=auto"},
			host:  vpn,
			fails: "name one with --map-subnet 10.0.0.0/8=CIDR",
		},
		"a network of nonsense": {
			also:  []string{"10.1.2.3.4/8"},
			fails: "--also-proxy 10.1.2.3.4/8 is not a network",
		},
		"a network of nonsense, never": {never: []string{"x"}, fails: "--never-proxy x is not a network"},
		"an empty network":             {also: []string{""}, fails: `--also-proxy "" is not a network`},
		"not a pair": {
			maps: []string{"x"},
			fails: "--map-subnet x is not CIDR=CIDR: " +
				"write for example --map-subnet 10.96.0.0/16=198.19.0.0/16, 10.96.0.0/16=auto, or auto",
		},
		"half a pair": {
			maps:  []string{"10.96.0.0/16"},
			fails: "--map-subnet 10.96.0.0/16 is not CIDR=CIDR",
		},
		"a pair of different sizes": {
			maps:  []string{"10.96.0.0/16=198.19.0.0/17"},
			fails: "10.96.0.0/16 and 198.19.0.0/17 differ in size or IP family",
		},
		"a pair of which one is not there": {maps: []string{"10.96.0.0/16="}, fails: "is not CIDR=CIDR"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.subnets == nil {
				c.subnets = subnets
			}
			w, err := Parse(c.also, c.never, c.maps)
			cluster := Cluster{Subnets: nets(c.subnets...), Nodes: addrs(c.nodes...), Server: addrs(c.server...)}
			var plan Plan
			var collisions []Collision
			if err == nil {
				plan, collisions, err = w.Plan(cluster, c.host)
			}
			if c.fails != "" {
				require.ErrorContains(t, err, c.fails)
				return
			}
			require.NoError(t, err)
			text := func(all any) string { return strings.Trim(fmt.Sprint(all), "[]") }
			assert.Equal(t, c.want, text(plan.Routes))
			assert.Equal(t, c.remap, text(plan.Remap))
			var said []string
			for _, c := range collisions {
				said = append(said, fmt.Sprintf("%s: %s", c.Subnet, c.Host))
			}
			assert.Equal(t, c.collisions, strings.Join(said, ", "))
			again, _, err := w.Plan(cluster, c.host)
			require.NoError(t, err)
			assert.Equal(t, plan, again, "mapped addresses stay")
		})
	}
}

func TestExplain(t *testing.T) {
	lan := Collision{
		Subnet: netip.MustParsePrefix("10.96.0.0/16"),
		Host:   HostNetwork{Prefix: netip.MustParsePrefix("10.96.5.7/24"), Interface: "eth0", Address: true},
	}
	vpn := Collision{
		Subnet: netip.MustParsePrefix("10.244.0.0/24"),
		Host:   HostNetwork{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Interface: "vpn0"},
	}
	assert.EqualError(t, Explain([]Collision{lan}),
		"the cluster's network 10.96.0.0/16 (interface eth0 has the address 10.96.5.7/24) is in use on this laptop: "+
			"map the cluster's to other addresses with --map-subnet auto, "+
			"keep the laptop's with --never-proxy 10.96.5.0/24, "+
			"use the cluster's instead with --also-proxy 10.96.0.0/16, "+
			"or connect without root (--rootless), where the laptop's networks do not matter")
	assert.ErrorContains(t, Explain([]Collision{lan, vpn}),
		"the cluster's networks 10.96.0.0/16 (interface eth0 has the address 10.96.5.7/24) and "+
			"10.244.0.0/24 (interface vpn0 has the route 10.0.0.0/8) are in use on this laptop: ")
	assert.ErrorContains(t, Explain([]Collision{lan, vpn}),
		"--never-proxy 10.96.5.0/24 --never-proxy 10.244.0.0/24, "+
			"use the cluster's instead with --also-proxy 10.96.0.0/16 --also-proxy 10.244.0.0/24,")
}
