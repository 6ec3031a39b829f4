package packet

import (
	"fmt"
	"testing"
)

// A large packet that the other end takes is copied once; one that it does not take is cut, and the
// checksum of each segment is computed.
func BenchmarkSegments(b *testing.B) {
	large := largePacket(false, contentsOf(60000))
	to := make([]byte, 1<<16)
	b.Run("large packet as it is", func(b *testing.B) {
		b.SetBytes(int64(len(large)))
		for b.Loop() {
			copy(to, large)
		}
	})
	for _, mss := range []int{1400, 15960} {
		b.Run(fmt.Sprintf("cut into segments of %d bytes", mss), func(b *testing.B) {
			b.SetBytes(int64(len(large)))
			for b.Loop() {
				s, ok := NewSegmenter(large, mss)
				if !ok {
					b.Fatal("the packet cannot be cut")
				}
				for s.Next(to) > 0 {
				}
			}
		})
	}
}
