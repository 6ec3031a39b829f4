package exchange

import (
	"bufio"
	"net"
	"sync"
	"testing"

	"github.com/detour-dev/detour/pkg/netx"
)

// BenchmarkPooledWriter measures a bulk transfer over loopback in pieces of one TLS record, against
// bufio.Writer with a buffer of the same small size, which a connection holds while it is idle too.
func BenchmarkPooledWriter(b *testing.B) {
	type flusher interface {
		Write(p []byte) (int, error)
		Flush() error
	}
	for name, writer := range map[string]func(net.Conn) flusher{
		"pooled": func(c net.Conn) flusher { return &pooledWriter{to: c} },
		"bufio":  func(c net.Conn) flusher { return bufio.NewWriterSize(c, smallBuffer) },
	} {
		b.Run(name, func(b *testing.B) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			var reading sync.WaitGroup
			reading.Go(func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				for buf := make([]byte, 256<<10); ; {
					if _, err := c.Read(buf); err != nil {
						return
					}
				}
			})
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			w, piece := writer(netx.Wrap(c)), make([]byte, smallBuffer)
			b.SetBytes(4 * smallBuffer)
			b.ReportAllocs()
			for b.Loop() {
				for range 4 {
					if _, err := w.Write(piece); err != nil {
						b.Fatal(err)
					}
				}
				if err := w.Flush(); err != nil {
					b.Fatal(err)
				}
			}
			_ = c.Close()
			reading.Wait()
		})
	}
}
