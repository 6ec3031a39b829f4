package exchange

import (
	"bytes"
	"errors"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// writes remembers each write.
type writes struct {
	net.Conn
	all  [][]byte
	fail error
}

func (w *writes) Write(b []byte) (int, error) {
	if w.fail != nil {
		return 0, w.fail
	}
	w.all = append(w.all, bytes.Clone(b))
	return len(b), nil
}

func TestPooledWriterGathers(t *testing.T) {
	for name, c := range map[string]struct {
		taken int32 // of the large buffers, by others
		piece int
		times int
		want  []int // how long the writes are
	}{
		"nothing":              {0, 0, 3, nil},
		"small":                {0, 100, 3, []int{300}},
		"a full buffer":        {0, smallBuffer, 1, []int{smallBuffer}},
		"bulk":                 {0, smallBuffer, 4, []int{4 * smallBuffer}},
		"more than fits":       {0, smallBuffer, 5, []int{largeBuffer, 5*smallBuffer - largeBuffer}},
		"at once":              {0, 100_000, 1, []int{largeBuffer, 100_000 - largeBuffer}},
		"with no large buffer": {maxLargeBuffers, smallBuffer, 3, []int{smallBuffer, smallBuffer, smallBuffer}},
	} {
		t.Run(name, func(t *testing.T) {
			before := largeBuffersUsed.Swap(c.taken)
			defer largeBuffersUsed.Store(before)
			to := &writes{}
			o := &pooledWriter{to: to}
			var sent []byte
			for i := range c.times {
				b := bytes.Repeat([]byte{byte(i)}, c.piece)
				sent = append(sent, b...)
				n, err := o.Write(b)
				require.NoError(t, err)
				assert.Equal(t, len(b), n)
			}
			require.NoError(t, o.Flush())
			var lengths []int
			for _, w := range to.all {
				lengths = append(lengths, len(w))
			}
			assert.Equal(t, c.want, lengths)
			assert.Equal(t, string(sent), string(bytes.Join(to.all, nil)))
			assert.Equal(t, c.taken, largeBuffersUsed.Load(), "what was taken is given back")
		})
	}
}

func TestPooledWriterAfterAnError(t *testing.T) {
	gone := errors.New("gone")
	before := largeBuffersUsed.Load()
	o := &pooledWriter{to: &writes{fail: gone}}
	_, err := o.Write(make([]byte, 2*largeBuffer))
	require.ErrorIs(t, err, gone)
	require.ErrorIs(t, o.Flush(), gone)
	_, err = o.Write([]byte("more"))
	require.ErrorIs(t, err, gone)
	assert.Equal(t, before, largeBuffersUsed.Load())
}
