package netstack

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// silent returns an address where nobody answers a SYN, because its queue of connections is full.
func silent(t *testing.T) netip.AddrPort {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	require.NoError(t, unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.Listen(fd, 0))
	name, err := unix.Getsockname(fd)
	require.NoError(t, err)
	address := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(name.(*unix.SockaddrInet4).Port))
	for range 10 {
		c, err := net.DialTimeout("tcp", address.String(), 200*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the kernel takes more connections than it was told to")
	return address
}

// A Service's pod that has just ended may be silent where another pod would answer.
func TestSilentDialIsRepeatedInParallel(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	gone, there := silent(t), netip.MustParseAddrPort(l.Addr().String())
	var attempts atomic.Int32
	f := &forwarder{dialer: HubDialer(), attempts: HubDialAttempts, translate: func(netip.AddrPort) netip.AddrPort {
		if attempts.Add(1) == 1 {
			return gone
		}
		return there
	}}
	c, err := f.connect(t.Context(), there)
	require.NoError(t, err)
	require.Equal(t, there.String(), c.RemoteAddr().String())
	require.NoError(t, c.Close())
	f.wg.Wait()
	require.EqualValues(t, 2, attempts.Load())
}

func TestDialReportsARefusalAndTheEndOfItsContext(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	refusing := netip.MustParseAddrPort(l.Addr().String())
	require.NoError(t, l.Close())
	f := &forwarder{dialer: HubDialer()}
	_, err = f.connect(t.Context(), refusing)
	require.ErrorIs(t, err, syscall.ECONNREFUSED)

	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(50*time.Millisecond, cancel)
	_, err = f.connect(ctx, silent(t))
	require.ErrorIs(t, err, context.Canceled)
	f.wg.Wait()
}
