package vif_test

import (
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif"
	"github.com/detour-dev/detour/pkg/vif/viftest"
)

// mirror answers each datagram with its source address.
func mirror(t *testing.T) string {
	t.Helper()
	server, err := net.ListenPacket("udp", netip.AddrPortFrom(viftest.Service, 0).String())
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			_, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo([]byte(from.String()), from)
		}
	})
	t.Cleanup(func() { _ = server.Close(); serving.Wait() })
	return server.LocalAddr().String()
}

// seenFrom sends a datagram, and returns the source address that the mirror saw: each flow has a
// socket of its own in the hub.
func seenFrom(t *testing.T, c net.Conn) string {
	t.Helper()
	buf := make([]byte, 100)
	for range 10 { // a datagram may be lost
		_, err := c.Write([]byte("where am I?"))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(viftest.Timeout/10)))
		if n, err := c.Read(buf); err == nil {
			return string(buf[:n])
		}
	}
	require.Fail(t, "no answer")
	return ""
}

func TestLongestIdleUDPFlowMakesRoom(t *testing.T) {
	hub, _, _, _ := viftest.PairOf(t, vif.Config{}, vif.HubConfig{MaxUDPFlows: 3})
	address := mirror(t)
	var all []net.Conn
	var seen []string
	for range 3 {
		c, err := viftest.Dial("udp", address)
		require.NoError(t, err)
		defer c.Close()
		all, seen = append(all, c), append(seen, seenFrom(t, c))
	}
	require.Equal(t, seen[0], seenFrom(t, all[0]), "the flow is still there")
	c, err := viftest.Dial("udp", address)
	require.NoError(t, err)
	defer c.Close()
	seenFrom(t, c)
	require.Equal(t, 3, hub.Stack().UDPFlows(viftest.LaptopAddress))
	require.Equal(t, seen[0], seenFrom(t, all[0]))
	require.Equal(t, seen[2], seenFrom(t, all[2]))
	require.NotEqual(t, seen[1], seenFrom(t, all[1]), "the flow had to make room, and is a new one now")
}

func TestUDPFlowsCarryDatagramsOfAnySize(t *testing.T) {
	viftest.Pair(t)
	server, err := net.ListenPacket("udp", netip.AddrPortFrom(viftest.Service, 0).String())
	require.NoError(t, err)
	defer server.Close()
	c, err := viftest.Dial("udp", server.LocalAddr().String())
	require.NoError(t, err)
	defer c.Close()
	buf := make([]byte, 64<<10)
	for _, size := range []int{0, 1, 1400, 15000} {
		for range 10 {
			_, err = c.Write(make([]byte, size))
			require.NoError(t, err)
			require.NoError(t, server.SetReadDeadline(time.Now().Add(viftest.Timeout/10)))
			n, from, rerr := server.ReadFrom(buf)
			if err = rerr; rerr != nil {
				continue
			}
			require.Equal(t, size, n)
			_, err = server.WriteTo(buf[:n], from)
			require.NoError(t, err)
			break
		}
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(viftest.Timeout)))
		n, err := c.Read(buf)
		require.NoError(t, err)
		require.Equal(t, size, n)
	}
}

// A refusal is about one datagram: a server that listens later gets the next ones.
func TestUDPFlowsOutliveARefusal(t *testing.T) {
	viftest.Pair(t)
	closed, err := net.ListenPacket("udp", netip.AddrPortFrom(viftest.Service, 0).String())
	require.NoError(t, err)
	address := closed.LocalAddr().String()
	require.NoError(t, closed.Close())
	c, err := viftest.Dial("udp", address)
	require.NoError(t, err)
	defer c.Close()
	for range 3 {
		if _, err := c.Write([]byte("hello")); err != nil {
			require.ErrorIs(t, err, syscall.ECONNREFUSED)
		}
	}
	server, err := net.ListenPacket("udp", address)
	require.NoError(t, err)
	defer server.Close()
	go func() {
		buf := make([]byte, 100)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], from)
		}
	}()
	require.NotEmpty(t, seenFrom(t, c))
}
