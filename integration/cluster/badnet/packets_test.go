package badnet_test

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/detour-dev/detour/integration/cluster/badnet"
	"github.com/stretchr/testify/require"
)

// packets is a relay to an echo of datagrams, and a socket that sends through it.
func packets(t *testing.T) (*badnet.PacketRelay, *net.UDPConn) {
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Close() })
	go func() {
		buffer := make([]byte, 64<<10)
		for {
			n, from, err := server.ReadFromUDPAddrPort(buffer)
			if err != nil {
				return
			}
			_, _ = server.WriteToUDPAddrPort(buffer[:n], from)
		}
	}()
	r, err := badnet.ListenPacket(t.Context(), "127.0.0.1:0", server.LocalAddr().String())
	require.NoError(t, err)
	t.Cleanup(r.Close)
	return r, sender(t, r)
}

func sender(t *testing.T, r *badnet.PacketRelay) *net.UDPConn {
	to, err := net.ResolveUDPAddr("udp", r.Addr())
	require.NoError(t, err)
	c, err := net.DialUDP("udp", nil, to)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// echoed sends datagrams and counts which come back within some time of each other.
func echoed(t *testing.T, c *net.UDPConn, count int) (back int) {
	for range count {
		_, err := c.Write(make([]byte, 100))
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		if _, err := c.Read(make([]byte, 64<<10)); err == nil {
			back++
		} else {
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		}
	}
	return back
}

func TestDatagramsPassBothWays(t *testing.T) {
	r, c := packets(t)
	other := sender(t, r)
	for i, from := range []*net.UDPConn{c, other, c} {
		message := random(t, 1200+i)
		_, err := from.Write(message)
		require.NoError(t, err)
		require.NoError(t, from.SetReadDeadline(time.Now().Add(patience)))
		got := make([]byte, 2000)
		n, err := from.Read(got)
		require.NoError(t, err)
		require.Equal(t, message, got[:n])
	}
}

func TestDatagramsAreLostAsAsked(t *testing.T) {
	r, c := packets(t)
	r.Stall(true)
	require.Zero(t, echoed(t, c, 3))
	r.Stall(false)
	require.Eventually(t, func() bool { return echoed(t, c, 1) == 1 }, patience, time.Millisecond)
	r.Loss(1)
	require.Zero(t, echoed(t, c, 3))
	r.Loss(0.5) // each way: a quarter comes back
	back := echoed(t, c, 60)
	require.True(t, back > 0 && back < 45, "%d of 60 came back", back)
}

func TestDatagramsAreDelayed(t *testing.T) {
	r, c := packets(t)
	r.Delay(150 * time.Millisecond)
	start := time.Now()
	_, err := c.Write([]byte("slow"))
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	_, err = c.Read(make([]byte, 10))
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(start), 150*time.Millisecond)
}

func TestANarrowLinkLosesWhatWouldWaitForLong(t *testing.T) {
	r, c := packets(t)
	r.Rate(8 * 100_000)
	start := time.Now()
	for range 100 { // a second's worth
		_, err := c.Write(make([]byte, 1000))
		require.NoError(t, err)
	}
	back := 0
	for {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		if _, err := c.Read(make([]byte, 2000)); err != nil {
			break
		}
		back++
	}
	require.Less(t, back, 100)
	require.Greater(t, back, 5)
	require.GreaterOrEqual(t, time.Since(start), time.Duration(back)*10*time.Millisecond)
}
