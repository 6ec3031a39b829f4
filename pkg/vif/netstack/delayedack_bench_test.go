package netstack

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// Requests and answers of 100 bytes on one connection between two stacks: with delayed
// acknowledgements fewer packets pass for each request.
func BenchmarkRequests(b *testing.B) {
	for _, c := range []struct {
		name  string
		limit int // of the connections whose acknowledgements may wait
	}{{name: "delayed", limit: ackFlows}, {name: "plain"}} {
		b.Run(c.name, func(b *testing.B) {
			var packets atomic.Int64
			client, server := connected(b, c.limit, &packets)
			var serving sync.WaitGroup
			serving.Go(func() { _, _ = io.Copy(server, server); _ = server.Close() })
			message := make([]byte, 100)
			before := packets.Load()
			for b.Loop() {
				if _, err := client.Write(message); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(client, message); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(packets.Load()-before)/float64(b.N), "packets/op")
			_ = client.Close()
			serving.Wait()
		})
	}
}

// connected returns the two ends of a connection between two stacks, whose packets it counts.
func connected(b *testing.B, limit int, packets *atomic.Int64) (client, server net.Conn) {
	b.Helper()
	addresses := []netip.Addr{netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("198.18.0.2")}
	var stacks []*Stack
	for _, a := range addresses {
		s, err := New(Config{
			Addresses: []netip.Addr{a},
			MTU:       16000,
			Allow:     func(netip.Addr) bool { return false },
			Log:       slog.New(slog.DiscardHandler),
		})
		require.NoError(b, err)
		s.link.limit = limit
		stacks = append(stacks, s)
	}
	var carrying sync.WaitGroup
	for i, from := range stacks {
		to := stacks[1-i]
		carrying.Go(func() { carry(from, to, packets) })
	}
	b.Cleanup(func() {
		for _, s := range stacks {
			s.Stop()
			_ = s.Close()
			s.Wait()
		}
		carrying.Wait()
	})
	l, err := stacks[1].Listen(netip.AddrPortFrom(addresses[1], 80))
	require.NoError(b, err)
	defer l.Close()
	accepted := make(chan net.Conn, 1)
	carrying.Go(func() {
		c, _ := l.Accept()
		accepted <- c
	})
	client, err = stacks[0].Dial(b.Context(), netip.AddrPortFrom(addresses[1], 80))
	require.NoError(b, err)
	server = <-accepted
	require.NotNil(b, server)
	return client, server
}

// carry moves packets from one stack to the other until the first one is closed.
func carry(from, to *Stack, packets *atomic.Int64) {
	bufs, sizes := make([][]byte, packet.BatchSize), make([]int, packet.BatchSize)
	for i := range bufs {
		bufs[i] = make([]byte, 1<<16)
	}
	for {
		n, err := from.Read(bufs, sizes, 0)
		if err != nil {
			return
		}
		packets.Add(int64(n))
		for i := range n {
			_, _ = to.Write([][]byte{bufs[i][:sizes[i]]}, 0)
		}
	}
}
