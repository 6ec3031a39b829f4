package transport

import (
	"testing"
)

// A message of the VIF's MTU is cut and put together again: in order, as the kernel delivers a
// train; one by one; and with a parity fragment that replaces a lost one.
func BenchmarkFragments(b *testing.B) {
	message := randomBytes(streamMTU)
	for _, c := range []struct {
		name         string
		parity, lose bool
	}{
		{name: "plain"},
		{name: "with parity", parity: true},
		{name: "with parity, one lost", parity: true, lose: true},
	} {
		b.Run(c.name, func(b *testing.B) {
			buf, r := make([]byte, 0, gsoBytes), &reassembler{}
			b.SetBytes(int64(len(message)))
			var id uint32
			for b.Loop() {
				id++
				train, count, size := appendFragments(buf[:0], message, id, c.parity)
				done := false
				for i := range count {
					if c.lose && i == 1 {
						continue
					}
					done = r.add(train[i*size:(i+1)*size]) != nil || done
				}
				if !done {
					b.Fatal("the message is incomplete")
				}
			}
		})
	}
	b.Run("plain, in order", func(b *testing.B) {
		buf, to := make([]byte, 0, gsoBytes), make([]byte, MaxMessage)
		b.SetBytes(int64(len(message)))
		for b.Loop() {
			train, _, size := appendFragments(buf[:0], message, 1, false)
			if n, _ := reassembleInOrder(to, train, size); n != len(message) {
				b.Fatal("the message is incomplete")
			}
		}
	})
}
