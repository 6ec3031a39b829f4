package vif

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestLoopbackByAnyNameIsNotOutside(t *testing.T) {
	for _, a := range []string{"127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1", "0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0", "255.255.255.255", "224.0.0.251", "ff02::fb"} {
		require.False(t, allowOutside(netip.MustParseAddr(a)), a)
	}
	for _, a := range []string{"192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:192.0.2.1"} {
		require.True(t, allowOutside(netip.MustParseAddr(a)), a)
	}
}

func TestPacketsGoTheirWay(t *testing.T) {
	s := &splitTUN{}
	s.setCluster([]netip.Prefix{netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd00:99::/64")})
	packet := func(to string, protocol byte) []byte {
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
		{"10.99.0.1", protocolTCP, wayCluster},
		{"10.99.0.1", protocolICMP, wayCluster},
		{"fd00:99::1", protocolUDP, wayCluster},
		{"192.0.2.1", protocolTCP, wayOutside},
		{"2001:db8::1", protocolUDP, wayOutside},
		{"192.0.2.1", protocolICMP, wayNowhere},
		{"224.0.0.251", protocolUDP, wayNowhere},
		{"ff02::2", protocolICMPv6, wayNowhere},
	} {
		require.Equal(t, c.want, s.way(packet(c.to, c.protocol)), "%s, protocol %d", c.to, c.protocol)
	}
	require.Equal(t, wayNowhere, s.way(nil))
	require.Equal(t, wayNowhere, s.way([]byte{0x60, 0}))
	require.Equal(t, wayNowhere, s.way(packet("10.99.0.1", protocolTCP)[:10]))
}
