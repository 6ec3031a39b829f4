package relay

import (
	"crypto/tls"
	"io"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkConn sends bulk over TLS with several records at a time, and over crypto/tls alone.
func BenchmarkConn(b *testing.B) {
	used := func() int64 {
		var u unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &u)
		return u.Utime.Nano() + u.Stime.Nano()
	}
	message := make([]byte, 64<<10)
	transfer := func(b *testing.B, to io.WriteCloser, from io.Reader) {
		b.SetBytes(int64(len(message)))
		var reading sync.WaitGroup
		reading.Go(func() { _, _ = io.Copy(io.Discard, from) })
		b.ResetTimer()
		start := used()
		for range b.N {
			_, err := to.Write(message)
			require.NoError(b, err)
		}
		b.ReportMetric(float64(used()-start)/float64(b.N), "cpu-ns/op")
		_ = to.Close()
		reading.Wait()
	}
	b.Run("records", func(b *testing.B) {
		client, server, _ := tlsPair(b)
		transfer(b, client, server)
	})
	b.Run("plain", func(b *testing.B) {
		client, server, clientConfig, serverConfig := rawPair(b)
		transfer(b, tls.Client(client, clientConfig), tls.Server(server, serverConfig))
	})
}
