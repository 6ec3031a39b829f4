package packet

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestClassMarkPassesWireGuard(t *testing.T) {
	require.NoError(t, CheckClassMark())
}

// The check fails when WireGuard overwrites the mark, and when it sends from other buffers than
// those it reads into.
func TestClassMarkCheckNoticesAnotherLayout(t *testing.T) {
	overwritten := func(buffer []byte, offset, size int, bulk bool) {
		SetClassMark(buffer, offset, size, bulk)
		buffer[len(buffer)-1] = 0
	}
	require.ErrorContains(t, checkClassMark(overwritten, IsBulk), "the class of a packet does not reach its message")
	stale := func(buffer []byte, offset, size int, _ bool) { SetClassMark(buffer, offset, size, true) }
	require.Error(t, checkClassMark(stale, IsBulk))
	copied := func(message []byte) bool { return IsBulk(append([]byte(nil), message...)) }
	require.Error(t, checkClassMark(SetClassMark, copied))
}

// The start of a process pays for the check once.
func BenchmarkClassMarkCheck(b *testing.B) {
	for b.Loop() {
		require.NoError(b, checkClassMark(SetClassMark, IsBulk))
	}
}
