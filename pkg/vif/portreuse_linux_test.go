package vif_test

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/viftest"
)

// A laptop that makes many connections uses its ports again within seconds. When the server closes
// first, the hub is the end that would keep the connection in TIME-WAIT, and netstack drops a SYN
// that meets such a connection.
func TestPortIsUsedAgainAtOnce(t *testing.T) {
	_, _, _ = viftest.Pair(t)
	l, err := net.Listen("tcp", netip.AddrPortFrom(viftest.Service, 0).String())
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("bye"))
			_ = c.Close()
		}
	})
	t.Cleanup(func() { _ = l.Close(); serving.Wait() })

	from := &net.TCPAddr{IP: viftest.LaptopAddress.AsSlice(), Port: 40123}
	for range 3 {
		require.NoError(t, viftest.InLaptop(func() error {
			c, err := (&net.Dialer{Timeout: 3 * time.Second, LocalAddr: from}).Dial("tcp", l.Addr().String())
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = io.ReadAll(c)
			return err
		}))
		time.Sleep(100 * time.Millisecond) // the last packets of the closing
	}
}
