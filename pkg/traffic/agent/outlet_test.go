package agent

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

func TestOutletGathers(t *testing.T) {
	for name, c := range map[string]struct {
		taken int32 // of the large buffers, by others
		piece int
		times int
		want  []int // how long the writes are
	}{
		"nothing":              {0, 0, 3, nil},
		"small":                {0, 100, 3, []int{300}},
		"a full buffer":        {0, exchangeBuffer, 1, []int{exchangeBuffer}},
		"bulk":                 {0, exchangeBuffer, 4, []int{4 * exchangeBuffer}},
		"more than fits":       {0, exchangeBuffer, 5, []int{outletBuffer, 5*exchangeBuffer - outletBuffer}},
		"at once":              {0, 100_000, 1, []int{outletBuffer, 100_000 - outletBuffer}},
		"with no large buffer": {outletLimit, exchangeBuffer, 3, []int{exchangeBuffer, exchangeBuffer, exchangeBuffer}},
	} {
		t.Run(name, func(t *testing.T) {
			before := outletsUsed.Swap(c.taken)
			defer outletsUsed.Store(before)
			to := &writes{}
			o := &outlet{to: to}
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
			assert.Equal(t, c.taken, outletsUsed.Load(), "what was taken is given back")
		})
	}
}

func TestOutletThatFailed(t *testing.T) {
	gone := errors.New("gone")
	before := outletsUsed.Load()
	o := &outlet{to: &writes{fail: gone}}
	_, err := o.Write(make([]byte, 2*outletBuffer))
	require.ErrorIs(t, err, gone)
	require.ErrorIs(t, o.Flush(), gone)
	_, err = o.Write([]byte("more"))
	require.ErrorIs(t, err, gone)
	assert.Equal(t, before, outletsUsed.Load())
}
