package mux

import (
	"io"
	"net"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
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

// echoMessages sends n messages of 100 bytes and reads them back.
func echoMessages(b *testing.B, c net.Conn, n int) {
	message := make([]byte, 100)
	for range n {
		if _, err := c.Write(message); err != nil {
			b.Error(err)
			return
		}
		if _, err := io.ReadFull(c, message); err != nil {
			b.Error(err)
			return
		}
	}
}

// BenchmarkRoundTrip echoes small messages on a stream that is alone, with delegated reads and
// without.
func BenchmarkRoundTrip(b *testing.B) {
	for name, delegate := range map[string]bool{"delegated": true, "plain": false} {
		b.Run(name, func(b *testing.B) {
			c := newOpener(b, process(b, echo))
			c.mu.Lock()
			c.r.neverDelegate = !delegate
			c.mu.Unlock()
			s := openStream(b, c)
			defer reportCPU(b)()
			echoMessages(b, s, b.N)
		})
	}
}

// BenchmarkManyStreams echoes small messages on 16 streams at once: on one TLS connection with and
// without the yield before a write, and as the plain way on 16 TLS connections.
func BenchmarkManyStreams(b *testing.B) {
	const count = 16
	all := func(b *testing.B, conns []net.Conn) {
		defer reportCPU(b)()
		var running sync.WaitGroup
		for _, c := range conns {
			running.Go(func() { echoMessages(b, c, b.N/count+1) })
		}
		running.Wait()
	}
	for name, yield := range map[string]bool{"streams": true, "streams without yield": false} {
		b.Run(name, func(b *testing.B) {
			near, far := pair(b)
			near, far = withTLS(b, near, far)
			opening, accepting := run(b, near, far, process(b, echo))
			for _, end := range []*Conn{opening, accepting} {
				end.mu.Lock()
				end.w.neverYield = !yield
				end.mu.Unlock()
			}
			var conns []net.Conn
			for range count {
				conns = append(conns, openStream(b, opening))
			}
			all(b, conns)
		})
	}
	b.Run("connections", func(b *testing.B) {
		accept := process(b, echo)
		var conns []net.Conn
		var running sync.WaitGroup
		defer running.Wait()
		for range count {
			near, far := pair(b)
			near, far = withTLS(b, near, far)
			local, _ := accept(nil)
			require.NotNil(b, local)
			running.Go(func() { _, _ = io.Copy(local, far) })
			running.Go(func() { _, _ = io.Copy(far, local); _ = far.Close() })
			conns = append(conns, near)
			defer local.Close()
			defer near.Close()
		}
		all(b, conns)
	})
}
