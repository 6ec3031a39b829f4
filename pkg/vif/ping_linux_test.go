package vif_test

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	neticmp "golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"github.com/detour-dev/detour/pkg/vif/viftest"
)

// allowPings opens ICMP sockets to this user, in the network namespace of the thread.
func allowPings(groups string) error {
	return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0)
}

// ping sends one echo request from the laptop, and reports whether an answer came from the pinged
// address.
func ping(t *testing.T, to netip.Addr, size int, wait time.Duration) bool {
	t.Helper()
	var c *neticmp.PacketConn
	viftest.OnLaptop(t, func() (err error) {
		if err = allowPings("0 0"); err == nil {
			c, err = neticmp.ListenPacket("udp4", "0.0.0.0")
		}
		return err
	})
	defer c.Close()
	sent := &neticmp.Echo{ID: c.LocalAddr().(*net.UDPAddr).Port, Seq: 7, Data: bytes.Repeat([]byte{0xa5}, size)}
	message, err := (&neticmp.Message{Type: ipv4.ICMPTypeEcho, Body: sent}).Marshal(nil)
	require.NoError(t, err)
	_, err = c.WriteTo(message, &net.UDPAddr{IP: to.AsSlice()})
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(wait)))
	buf := make([]byte, 64<<10)
	n, from, err := c.ReadFrom(buf)
	if err != nil {
		return false
	}
	require.Equal(t, to.String(), from.(*net.UDPAddr).IP.String())
	answer, err := neticmp.ParseMessage(1, buf[:n])
	require.NoError(t, err)
	require.Equal(t, ipv4.ICMPTypeEchoReply, answer.Type)
	require.Equal(t, sent, answer.Body)
	return true
}

// Hosts that exist answer a ping, and others do not.
func TestPing(t *testing.T) {
	require.NoError(t, allowPings("0 0"))
	viftest.Pair(t)
	for _, size := range []int{1, 56, 1400, 9000} {
		require.True(t, ping(t, viftest.Service, size, viftest.Timeout), "%d bytes", size)
	}
	require.True(t, ping(t, viftest.HubAddress, 56, viftest.Timeout), "the hub")
	for _, nobody := range []string{"10.99.0.77", "198.18.0.99"} {
		require.False(t, ping(t, netip.MustParseAddr(nobody), 56, 300*time.Millisecond), nobody)
	}
}
