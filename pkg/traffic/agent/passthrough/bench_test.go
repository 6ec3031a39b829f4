//go:build linux

package passthrough

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/detour-dev/detour/pkg/traffic/agent/http1"
)

// BenchmarkRawSyscall measures the write and the read of one small message on a pair of sockets:
// with the calls that tell Go's scheduler, and with the raw calls.
func BenchmarkRawSyscall(b *testing.B) {
	for _, bench := range []struct {
		name  string
		read  func(int, []byte) (int, error)
		write func(int, []byte) (int, error)
	}{
		{name: "plain", read: unix.Read, write: unix.Write},
		{name: "raw", read: readRaw, write: writeRaw},
	} {
		b.Run(bench.name, func(b *testing.B) {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
			require.NoError(b, err)
			defer unix.Close(fds[0])
			defer unix.Close(fds[1])
			message, buffer := make([]byte, 128), make([]byte, bufferSize)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := bench.write(fds[0], message); err != nil {
					b.Fatal(err)
				}
				if _, err := bench.read(fds[1], buffer); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkSplice measures bulk over loopback, from an app through a loop to a client: with
// splice(2), and with the copies that a loop makes when it follows the answers. The processor time
// is that of app, loop and client together.
func BenchmarkSplice(b *testing.B) {
	const size = 64 << 20
	for _, bench := range []struct {
		name   string
		policy Policy
		first  string
	}{
		{name: "splice", policy: ToApp, first: "bulk"},
		{name: "copy", policy: ByRequest, first: "GET / HTTP/1.1\r\nHost: app\r\n\r\n"},
	} {
		b.Run(bench.name, func(b *testing.B) {
			app := newApp(b, func(c *net.TCPConn) {
				_, _ = c.Read(make([]byte, 64))
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
				for part := make([]byte, 1<<20); ; {
					if _, err := c.Write(part); err != nil {
						return
					}
				}
			})
			c := dial(b, servePolicy(b, app, bench.policy))
			_, err := io.WriteString(c, bench.first)
			require.NoError(b, err)
			b.SetBytes(size)
			b.ReportAllocs()
			before, n := processorTime(b), 0
			for ; b.Loop(); n++ {
				if _, err := io.CopyN(io.Discard, c, size); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(processorTime(b)-before)/float64(n), "cpu-ns/op")
			require.NoError(b, c.Close())
		})
	}
}

// servePolicy serves a passthrough with one policy, whose requests are all for the app, and returns
// the address for clients.
func servePolicy(b *testing.B, app net.Listener, policy Policy) string {
	b.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	ctx, stop := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		assert.NoError(b, Serve(ctx, Config{
			Listeners: map[uint16]*net.TCPListener{uint16(app.Addr().(*net.TCPAddr).Port): l.(*net.TCPListener)},
			Policy:    func(uint16) Policy { return policy },
			Choose:    func(uint16, *http1.Head) (any, bool) { return nil, true },
		}))
	})
	b.Cleanup(func() { stop(); serving.Wait() })
	return l.Addr().String()
}

// processorTime returns the processor time of this process so far, in nanoseconds.
func processorTime(b *testing.B) int64 {
	b.Helper()
	var usage unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &usage))
	return usage.Utime.Nano() + usage.Stime.Nano()
}
