package tundev

import (
	"testing"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// endless is a TUN from which the same packet comes again and again.
type endless struct {
	tun.Device
	packet []byte
}

func (e *endless) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for i := range bufs {
		sizes[i] = copy(bufs[i][offset:], e.packet)
	}
	return len(bufs), nil
}

// The classifier hashes the flow of each packet that WireGuard reads.
func BenchmarkClassifier(b *testing.B) {
	const offset = device.MessageTransportHeaderSize
	plain := &endless{packet: ipPacket(4, packet.TCP, 1, 1400)}
	for name, t := range map[string]tun.Device{"plain": plain, "classified": NewClassifier(plain)} {
		b.Run(name, func(b *testing.B) {
			bufs, sizes := make([][]byte, packet.BatchSize), make([]int, packet.BatchSize)
			for i := range bufs {
				bufs[i] = make([]byte, device.MaxMessageSize)
			}
			b.SetBytes(int64(packet.BatchSize * len(plain.packet)))
			for b.Loop() {
				if _, err := t.Read(bufs, sizes, offset); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
