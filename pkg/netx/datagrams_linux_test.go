package netx

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestDatagramsArriveInOrderWithTheirSender(t *testing.T) {
	for network, address := range map[string]string{"udp4": "127.0.0.1", "udp6": "::1"} {
		t.Run(network, func(t *testing.T) {
			open := func() *net.UDPConn {
				any := netip.AddrPortFrom(netip.MustParseAddr(address), 0)
				c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(any))
				if err != nil {
					t.Skip("this machine has no " + network + " address")
				}
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			from, to := open(), open()
			s, r := NewSender(from), NewReceiver(to, 4, 2000, unix.CmsgSpace(4))
			sent := []string{"one", "", strings.Repeat("x", 1500)}
			for _, text := range sent {
				require.NoError(t, s.Send([]byte(text), nil, to.LocalAddr().(*net.UDPAddr).AddrPort()))
			}
			require.NoError(t, to.SetReadDeadline(time.Now().Add(10*time.Second)))
			var got []string
			for len(got) < len(sent) {
				all, err := r.Receive(nil)
				require.NoError(t, err)
				for _, d := range all {
					require.Equal(t, from.LocalAddr().(*net.UDPAddr).AddrPort(), d.From)
					require.Empty(t, d.Control)
					got = append(got, string(d.Data))
				}
			}
			require.Equal(t, sent, got)
			require.NoError(t, to.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
			_, err := r.Receive(nil)
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			require.NoError(t, to.Close())
			_, err = r.Receive(nil)
			require.ErrorIs(t, err, net.ErrClosed)
			require.NoError(t, from.Close())
			require.ErrorIs(t, s.Send([]byte("x"), nil, netip.MustParseAddrPort("127.0.0.1:1")), net.ErrClosed)
		})
	}
}

func TestSenderReturnsTheKernelsError(t *testing.T) {
	c, err := net.ListenUDP("udp4", nil)
	require.NoError(t, err)
	defer c.Close()
	s := NewSender(c)
	require.ErrorIs(t, s.Send(make([]byte, 70000), nil, netip.MustParseAddrPort("127.0.0.1:9")), unix.EMSGSIZE)
}

func TestFileReadsAndWritesANonBlockingFile(t *testing.T) {
	var ends [2]int
	require.NoError(t, unix.Pipe2(ends[:], unix.O_NONBLOCK|unix.O_CLOEXEC))
	reading, writing := os.NewFile(uintptr(ends[0]), "reading"), os.NewFile(uintptr(ends[1]), "writing")
	defer writing.Close()
	r, err := NewFile(reading)
	require.NoError(t, err)
	w, err := NewFile(writing)
	require.NoError(t, err)
	got := make(chan string)
	go func() {
		b := make([]byte, 10)
		n, err := r.Read(b)
		if err != nil {
			got <- err.Error()
			return
		}
		got <- string(b[:n])
	}()
	n, err := w.Write([]byte("hello"))
	require.NoError(t, err)
	require.Equal(t, 5, n)
	require.Equal(t, "hello", <-got)
	require.NoError(t, reading.Close())
	_, err = r.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = w.Write([]byte("x"))
	require.ErrorIs(t, err, unix.EPIPE)

	var blocking [2]int
	require.NoError(t, unix.Pipe2(blocking[:], unix.O_CLOEXEC))
	for _, fd := range blocking {
		f := os.NewFile(uintptr(fd), "blocking")
		defer f.Close()
		_, err := NewFile(f)
		require.Error(t, err)
	}
}
