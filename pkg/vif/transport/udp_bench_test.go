package transport

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// A batch of messages of the VIF's MTU is sent to a socket that nobody reads: with GSO in few
// system calls, and plain in one for each datagram.
func BenchmarkSend(b *testing.B) {
	receiver, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(b, err)
	defer receiver.Close()
	to := receiver.LocalAddr().(*net.UDPAddr).AddrPort()
	messages := make([][]byte, 8)
	for i := range messages {
		messages[i] = randomBytes(streamMTU)
	}
	for _, c := range []struct {
		name  string
		plain bool
	}{{name: "GSO"}, {name: "plain", plain: true}} {
		b.Run(c.name, func(b *testing.B) {
			u, err := listenUDP(0, func(netip.AddrPort) *reassembler { return nil })
			require.NoError(b, err)
			defer u.close()
			u.noGSO.Store(c.plain)
			b.SetBytes(int64(len(messages) * streamMTU))
			for b.Loop() {
				if err := u.send(messages, to, false); err != nil {
					b.Fatal(err)
				}
			}
			if u.noGSO.Load() != c.plain {
				b.Skip("this machine has no GSO")
			}
		})
	}
}
