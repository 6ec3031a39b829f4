package rootless

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

func TestEgressRefusesLoopbackUnderAnyName(t *testing.T) {
	for _, a := range []string{
		"127.0.0.1",
		"127.8.8.8",
		"::1",
		"::ffff:127.0.0.1",
		"0.0.0.0",
		"0.1.2.3",
		"::",
		"::ffff:0.0.0.0",
		"255.255.255.255",
		"224.0.0.251",
		"ff02::fb",
	} {
		require.False(t, allowEgress(netip.MustParseAddr(a)), a)
	}
	for _, a := range []string{"192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1"} {
		require.True(t, allowEgress(netip.MustParseAddr(a)), a)
	}
}

func TestEgressRoutes(t *testing.T) {
	s := &egressTUN{}
	s.setClusterNets([]netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd00:99::/64")})
	packetTo := func(to string, protocol byte) []byte {
		a := netip.MustParseAddr(to)
		if a.Is4() {
			p := make([]byte, 28)
			p[0], p[9] = 0x45, protocol
			copy(p[16:], a.AsSlice())
			return p
		}
		p := make([]byte, 48)
		p[0], p[6] = 0x60, protocol
		copy(p[24:], a.AsSlice())
		return p
	}
	for _, c := range []struct {
		to       string
		protocol byte
		want     int
	}{
		{to: "10.99.0.1", protocol: packet.TCP, want: routeCluster},
		{to: "10.99.0.1", protocol: packet.ICMP, want: routeCluster},
		{to: "fd00:99::1", protocol: packet.UDP, want: routeCluster},
		{to: "192.0.2.1", protocol: packet.TCP, want: routeEgress},
		{to: "2001:db8::1", protocol: packet.UDP, want: routeEgress},
		{to: "192.0.2.1", protocol: packet.ICMP, want: routeNowhere},
		{to: "224.0.0.251", protocol: packet.UDP, want: routeNowhere},
		{to: "ff02::2", protocol: packet.ICMPv6, want: routeNowhere},
	} {
		require.Equal(t, c.want, s.route(packetTo(c.to, c.protocol)), "%s, protocol %d", c.to, c.protocol)
	}
	require.Equal(t, routeNowhere, s.route(nil))
	require.Equal(t, routeNowhere, s.route([]byte{0x60, 0}))
	require.Equal(t, routeNowhere, s.route(packetTo("10.99.0.1", packet.TCP)[:10]))
}
