package netx

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/netx/spin"
)

// reportCPU reports the processor time of the whole process for each operation, which is less noisy
// than the time that passes.
func reportCPU(b *testing.B) (stop func()) {
	used := func() int64 {
		var u unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
		return u.Utime.Nano() + u.Stime.Nano()
	}
	b.ResetTimer()
	start := used()
	return func() { b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op") }
}

// pingPong sends n messages of 100 bytes from a and echoes them at c; before runs before each read
// of a.
func pingPong(b *testing.B, a, c net.Conn, n int, before func()) {
	var echo sync.WaitGroup
	echo.Go(func() {
		message := make([]byte, 100)
		for range n {
			if _, err := io.ReadFull(c, message); err != nil {
				b.Error(err)
				return
			}
			if _, err := c.Write(message); err != nil {
				b.Error(err)
				return
			}
		}
	})
	message := make([]byte, 100)
	for range n {
		_, err := a.Write(message)
		require.NoError(b, err)
		before()
		_, err = io.ReadFull(a, message)
		require.NoError(b, err)
	}
	echo.Wait()
}

// BenchmarkConn echoes small messages with direct system calls and with package net.
func BenchmarkConn(b *testing.B) {
	a, c := pair(b)
	b.Run("direct", func(b *testing.B) {
		defer reportCPU(b)()
		pingPong(b, a, c, b.N, func() {})
	})
	b.Run("plain", func(b *testing.B) {
		defer reportCPU(b)()
		pingPong(b, a.TCPConn, c.TCPConn, b.N, func() {})
	})
}

// BenchmarkSpin echoes small messages with a client that polls before it sleeps, and one that
// sleeps at once.
func BenchmarkSpin(b *testing.B) {
	a, c := pair(b)
	b.Run("spin", func(b *testing.B) {
		defer reportCPU(b)()
		var policy spin.Policy
		pingPong(b, a, c, b.N, func() { SpinUntilReadable(a, &policy) })
	})
	b.Run("plain", func(b *testing.B) {
		defer reportCPU(b)()
		pingPong(b, a, c, b.N, func() {})
	})
}

// BenchmarkCork sends 128 KiB in TLS records that leave in one write, and in one write for each
// record.
func BenchmarkCork(b *testing.B) {
	server := httptest.NewUnstartedServer(http.NotFoundHandler())
	server.StartTLS()
	defer server.Close()
	for name, corked := range map[string]bool{"corked": true, "plain": false} {
		b.Run(name, func(b *testing.B) {
			near, far := pair(b)
			c := &CorkConn{Conn: near}
			config := &tls.Config{
				InsecureSkipVerify: true, DynamicRecordSizingDisabled: true, //nolint:gosec // a benchmark
			}
			client := tls.Client(c, config)
			sink := tls.Server(far, server.TLS)
			var reading sync.WaitGroup
			reading.Go(func() { _, _ = io.Copy(io.Discard, sink) })
			require.NoError(b, client.Handshake())
			message := make([]byte, 128<<10)
			b.SetBytes(int64(len(message)))
			stop := reportCPU(b)
			for range b.N {
				if corked {
					c.Cork()
				}
				_, err := client.Write(message)
				require.NoError(b, errors.Join(err, c.Uncork()))
			}
			stop()
			_ = client.Close()
			reading.Wait()
		})
	}
}

// BenchmarkCopy copies 1 MiB over a new connection each time, with Copy and with io.Copy on the
// same sockets. io.Copy on wrapped sockets uses a buffer of 32 KiB for each connection.
func BenchmarkCopy(b *testing.B) {
	const size = 1 << 20
	for name, copyAll := range map[string]func(to, from *Conn) error{
		"copy": func(to, from *Conn) error { return Copy(to, from) },
		"plain": func(to, from *Conn) error {
			_, err := io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from})
			return err
		},
	} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			payload := make([]byte, size)
			defer reportCPU(b)()
			for range b.N {
				source, from := pair(b)
				to, sink := pair(b)
				var running sync.WaitGroup
				running.Go(func() { _, _ = source.Write(payload); _ = source.Close() })
				running.Go(func() { _, _ = io.Copy(io.Discard, sink) })
				require.NoError(b, copyAll(to, from))
				_ = to.Close()
				running.Wait()
			}
		})
	}
}

// BenchmarkDatagrams sends and receives batches of 32 datagrams, with Sender and Receiver and with
// package net.
func BenchmarkDatagrams(b *testing.B) {
	const batch = 32
	open := func() *net.UDPConn {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		require.NoError(b, err)
		require.NoError(b, c.SetReadBuffer(1<<20))
		b.Cleanup(func() { _ = c.Close() })
		return c
	}
	from, to := open(), open()
	address := netip.MustParseAddrPort(to.LocalAddr().String())
	message := make([]byte, 1400)
	b.Run("batches", func(b *testing.B) {
		s, r := NewSender(from), NewReceiver(to, batch, 2000, 64)
		all := make([]Datagram, 0, batch)
		defer reportCPU(b)()
		for range b.N {
			for range batch {
				require.NoError(b, s.Send(message, nil, address))
			}
			for n := 0; n < batch; {
				got, err := r.Receive(all[:0])
				require.NoError(b, err)
				n += len(got)
			}
		}
	})
	b.Run("plain", func(b *testing.B) {
		buf, control := make([]byte, 2000), make([]byte, 64)
		defer reportCPU(b)()
		for range b.N {
			for range batch {
				_, _, err := from.WriteMsgUDPAddrPort(message, nil, address)
				require.NoError(b, err)
			}
			for range batch {
				_, _, _, _, err := to.ReadMsgUDPAddrPort(buf, control)
				require.NoError(b, err)
			}
		}
	})
}
