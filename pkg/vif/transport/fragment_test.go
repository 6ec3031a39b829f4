package transport

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// streamMTU is the VIF's MTU.
const streamMTU = 16000

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

// cutMessage cuts a message into fragments, each in memory of its own.
func cutMessage(t *testing.T, message []byte, id uint32) [][]byte {
	t.Helper()
	return cutWith(t, message, id, false)
}

func cutWith(t *testing.T, message []byte, id uint32, spare bool) [][]byte {
	t.Helper()
	buf, n, size := appendFragments(make([]byte, 0, gsoBytes), message, id, spare)
	require.Len(t, buf, n*size)
	var all [][]byte
	for at := 0; at < len(buf); at += size {
		all = append(all, bytes.Clone(buf[at:at+size]))
	}
	return all
}

func TestFragmentsMakeTheMessageAgain(t *testing.T) {
	for _, size := range []int{
		MaxDatagram + 1,
		2*MaxDatagram - 1,
		2*(MaxDatagram-fragmentHeaderSize) + 1,
		streamMTU + 32,
		60000,
	} {
		message := randomBytes(size)
		all := cutMessage(t, message, 7)
		for _, p := range all {
			require.LessOrEqual(t, len(p), MaxDatagram)
			require.Len(t, p, len(all[0]), "all are as long, for GSO")
			require.True(t, isFragment(p))
			require.False(t, isProbe(p))
		}
		for name, order := range map[string]func(int) int{
			"in order":  func(i int) int { return i },
			"backwards": func(i int) int { return len(all) - 1 - i },
		} {
			var j reassembler
			var got []byte
			for i := range all {
				require.Nil(t, got, name)
				got = j.add(all[order(i)])
			}
			require.Equal(t, message, got, "%d bytes, %s", size, name)
			require.Nil(t, j.add(all[0]), "it comes once")
			require.False(t, j.loses(time.Now()))
		}
	}
	_, n, _ := appendFragments(make([]byte, 0, gsoBytes), randomBytes(MaxMessage), 1, false)
	require.Zero(t, n, "there is no room for the headers of the longest message")
	_, n, _ = appendFragments(make([]byte, 0, 20000), randomBytes(streamMTU), 1, false)
	require.NotZero(t, n)
	_, n, _ = appendFragments(make([]byte, 15000, 20000), randomBytes(streamMTU), 1, false)
	require.Zero(t, n, "there is no room")
}

func TestFragmentsInOrder(t *testing.T) {
	message := randomBytes(streamMTU)
	train, n, size := appendFragments(make([]byte, 0, gsoBytes), message, 7, false)
	train = append(train, "what comes after them"...)
	packet := make([]byte, MaxMessage)
	got, taken := reassembleInOrder(packet, train, size)
	require.Equal(t, n*size, taken)
	require.True(t, bytes.Equal(message, packet[:got]))
	for name, bad := range map[string]func([]byte) []byte{
		"one is missing":      func(b []byte) []byte { return append(b[:3*size], b[4*size:]...) },
		"the first is":        func(b []byte) []byte { return b[size:] },
		"two are exchanged":   func(b []byte) []byte { b[size+2], b[2*size+2] = b[2*size+2], b[size+2]; return b },
		"one is of another":   func(b []byte) []byte { b[size+7]++; return b },
		"the last is shorter": func(b []byte) []byte { return b[:n*size-1] },
	} {
		_, taken := reassembleInOrder(packet, bad(bytes.Clone(train[:n*size])), size)
		require.Zero(t, taken, name)
	}
}

// FuzzReassembleInOrder gives made-up trains of datagrams to reassembleInOrder, which must not
// trust their headers.
func FuzzReassembleInOrder(f *testing.F) {
	train, _, size := appendFragments(make([]byte, 0, gsoBytes), randomBytes(5000), 7, false)
	f.Add(train, uint16(size))
	f.Fuzz(func(t *testing.T, train []byte, size uint16) {
		if first := train[:min(int(size), len(train))]; !isFragment(first) {
			return
		}
		packet := make([]byte, MaxMessage)
		n, taken := reassembleInOrder(packet, train, int(size))
		require.LessOrEqual(t, n, taken)
		require.LessOrEqual(t, taken, len(train))
	})
}

func TestFragmentsOfSeveralMessagesAtOnce(t *testing.T) {
	a, b := randomBytes(5000), randomBytes(9000)
	as, bs := cutMessage(t, a, 1), cutMessage(t, b, 2)
	var j reassembler
	var got [][]byte
	for i := range max(len(as), len(bs)) {
		for _, all := range [][][]byte{as, bs} {
			if i < len(all) {
				if m := j.add(all[i]); m != nil {
					got = append(got, bytes.Clone(m))
				}
			}
		}
	}
	assert.Equal(t, [][]byte{a, b}, got)

	t.Run("with a parity fragment any fragment may be lost", func(t *testing.T) {
		bs := cutWith(t, b, 2, true)
		for lost := range bs {
			var j reassembler
			var got [][]byte
			for i, p := range bs {
				if i == lost {
					continue
				}
				if m := j.add(p); m != nil {
					got = append(got, bytes.Clone(m))
				}
			}
			require.Equal(t, [][]byte{b}, got, "without fragment %d", lost)
			require.Equal(t, lost < len(bs)-1, j.loses(time.Now()), "the loss is noticed")
		}
		var j reassembler
		j.skip(bs[0])
		require.Nil(t, j.add(bs[len(bs)-1]), "its other fragments do not begin a new message")
		require.Nil(t, j.add(cutMessage(t, b, 2+inFlight)[0]))
		require.False(t, j.loses(time.Now()))
	})

	t.Run("a lost fragment costs only its own message", func(t *testing.T) {
		var j reassembler
		for _, p := range as[1:] {
			require.Nil(t, j.add(p))
		}
		var got []byte
		for _, p := range cutMessage(t, b, 1+inFlight) { // it takes the place of the other message
			got = j.add(p)
		}
		require.Equal(t, b, got)
		require.Nil(t, j.add(as[0]))
	})
}

// FuzzReassemble gives made-up fragments to a reassembler. No message may be longer than
// WireGuard's, and the memory must stay bounded.
func FuzzReassemble(f *testing.F) {
	buf, _, size := appendFragments(make([]byte, 0, gsoBytes), randomBytes(3000), 9, false)
	f.Add(buf, uint16(size))
	f.Add([]byte{FragmentType, 64, 63, 255, 0, 0, 0, 1, 2}, uint16(9))
	f.Add([]byte{FragmentType, 0, 0, 0, 0, 0, 0, 1, 2, FragmentType, 1, 0, 0, 0, 0, 0, 1, 2}, uint16(9))
	f.Fuzz(func(t *testing.T, raw []byte, size uint16) {
		var j reassembler
		for len(raw) > 0 && size > 0 {
			n := min(len(raw), int(size))
			if isFragment(raw[:n]) {
				require.LessOrEqual(t, len(j.add(raw[:n])), MaxMessage)
			}
			raw = raw[n:]
		}
		for _, m := range j.messages {
			require.LessOrEqual(t, cap(m.contents), 2*MaxMessage)
		}
	})
}
