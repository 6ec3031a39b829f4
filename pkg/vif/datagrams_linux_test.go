package vif_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/viftest"
)

// udpEcho sends datagrams back from the cluster's address.
func udpEcho(t *testing.T) netip.AddrPort {
	t.Helper()
	server, err := net.ListenPacket("udp", netip.AddrPortFrom(viftest.Service, 0).String())
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(buf[:n], from)
		}
	})
	t.Cleanup(func() { _ = server.Close(); serving.Wait() })
	return server.LocalAddr().(*net.UDPAddr).AddrPort()
}

// QUIC sends as many datagrams as this before it waits, and takes each loss for congestion.
func TestNoDatagramIsLost(t *testing.T) {
	viftest.Pair(t)
	c, err := viftest.Dial("udp", udpEcho(t).String())
	require.NoError(t, err)
	defer c.Close()
	const count, size, window = 10_000, 1200, 64
	room := make(chan struct{}, window)
	var receiving sync.WaitGroup
	receiving.Go(func() {
		seen := make([]bool, count)
		buf := make([]byte, size+1)
		for n := range count {
			_ = c.SetReadDeadline(time.Now().Add(viftest.Timeout))
			got, err := c.Read(buf)
			if !assert.NoError(t, err, "after %d", n) || !assert.Equal(t, size, got) {
				break
			}
			number := binary.BigEndian.Uint32(buf)
			assert.False(t, seen[number], "datagram %d came twice", number)
			seen[number] = true
			<-room
		}
		_ = c.Close() // frees the sender
	})
	message := make([]byte, size)
	for n := range count {
		select {
		case room <- struct{}{}:
		case <-time.After(10 * time.Second):
			t.Error("the answers stopped")
		}
		binary.BigEndian.PutUint32(message, uint32(n))
		if _, err := c.Write(message); err != nil {
			break
		}
	}
	receiving.Wait()
}

func TestDatagramsOfAllSizes(t *testing.T) {
	viftest.Pair(t)
	c, err := viftest.Dial("udp", udpEcho(t).String())
	require.NoError(t, err)
	defer c.Close()
	buf := make([]byte, 64<<10)
	for _, size := range []int{1, 512, 1200, 1452, 9000, 20000, 65507} {
		message := bytes.Repeat([]byte{byte(size)}, size)
		// On a machine that stands still for seconds a datagram may be lost with its stream.
		for attempt := 1; ; attempt++ {
			require.NoError(t, c.SetDeadline(time.Now().Add(viftest.Timeout/10)))
			_, err = c.Write(message)
			require.NoError(t, err, "%d bytes", size)
			n, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) && attempt < 10 {
				continue
			}
			require.NoError(t, err, "%d bytes", size)
			if n != size && attempt > 1 {
				continue // a late answer to the message before
			}
			require.True(t, bytes.Equal(message, buf[:n]), "%d bytes", size)
			break
		}
	}
}
