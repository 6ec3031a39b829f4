package copies

import (
	"io"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/detour-dev/detour/pkg/traffic/agent/budget"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// A laptop's process may close the connection as soon as it has a request: before the writer knows
// that the request was written, and before the app has answered. Such a copy is not lost.
func TestCopyThatWasTakenIsNotLost(t *testing.T) {
	var dropped uint64
	begun := func() (*buffer, []byte) {
		dropped = 0
		b := newBuffer(budget.New(MaxTotal), func(n uint64) { dropped += n })
		b.Begin()
		_, _ = b.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		sent, err := b.next()
		require.NoError(t, err)
		return b, sent
	}
	lost := func() uint64 { return dropped }

	b, sent := begun()
	b.drop(io.ErrClosedPipe)
	b.passed(sent, true)
	b.Complete()
	require.Zero(t, lost(), "closed before it was known to be written")

	b, sent = begun()
	b.passed(sent, true)
	b.drop(io.ErrClosedPipe)
	b.Complete()
	require.Zero(t, lost(), "closed before the app's answer")

	b, sent = begun()
	b.passed(sent, true)
	b.drop(io.ErrClosedPipe)
	for range 2 {
		_, _ = b.Write([]byte("more"))
		b.settleLocked()
	}
	b.Complete()
	require.Equal(t, uint64(1), lost(), "closed before its end")

	b, sent = begun()
	b.drop(io.ErrClosedPipe)
	b.passed(sent, false)
	b.Complete()
	require.Equal(t, uint64(1), lost(), "not written")
}

// All copies that wait share one bound, and what is dropped is given back to it.
func TestCopiesShareABudget(t *testing.T) {
	var dropped uint64
	total := budget.New(MaxTotal)
	const size, taps = 200 << 10, 100
	all := make([]*buffer, taps)
	for i := range all {
		all[i] = newBuffer(total, func(n uint64) { dropped += n })
		for range 2 { // the second is too much for one connection
			all[i].Begin()
			_, err := all[i].Write(make([]byte, size))
			require.NoError(t, err)
			all[i].Complete()
			require.LessOrEqual(t, total.Used(), int64(MaxTotal))
			if i < MaxTotal/size {
				break
			}
		}
	}
	held := 0
	for _, b := range all {
		held += cap(b.waiting)
	}
	require.LessOrEqual(t, held, 2*MaxTotal)
	require.Equal(t, uint64(2*(taps-MaxTotal/size)), dropped)
	for _, b := range all {
		b.drop(errTooSlow)
	}
	require.Zero(t, total.Used())
	require.Equal(t, uint64(2*taps-MaxTotal/size), dropped)
}
