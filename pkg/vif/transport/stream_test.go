package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/conn"
)

func frame(messages ...string) (raw []byte) {
	for _, m := range messages {
		raw = binary.BigEndian.AppendUint32(raw, uint32(len(m)))
		raw = append(raw, m...)
	}
	return raw
}

func TestSplitFrames(t *testing.T) {
	longest := strings.Repeat("x", MaxMessage)
	for name, c := range map[string]struct {
		raw      []byte
		messages []string
		rest     int
		err      error
	}{
		"nothing":              {raw: nil, messages: nil},
		"one":                  {raw: frame("handshake"), messages: []string{"handshake"}},
		"several":              {raw: frame("a", "bc", "def"), messages: []string{"a", "bc", "def"}},
		"an empty message":     {raw: frame("a", "", "b"), messages: []string{"a", "", "b"}},
		"half a length":        {raw: append(frame("a"), 0, 0), messages: []string{"a"}, rest: 2},
		"only a length":        {raw: append(frame("a"), 0, 0, 0, 1), messages: []string{"a"}, rest: 4},
		"half a message":       {raw: append(frame("a"), 0, 0, 0, 3, 'x', 'y'), messages: []string{"a"}, rest: 6},
		"the longest":          {raw: frame(longest), messages: []string{longest}},
		"one longer than that": {raw: frame("a", longest+"x"), messages: []string{"a"}, err: errFrameTooLong},
		// The error comes before the bytes do: nobody waits for 4 GB.
		"a nonsensical length": {raw: []byte{0xff, 0xff, 0xff, 0xff}, messages: nil, err: errFrameTooLong},
		"HTTP":                 {raw: []byte("GET / HTTP/1.1\r\n\r\n"), messages: nil, err: errFrameTooLong},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			rest, err := splitFrames(c.raw, func(m []byte) { got = append(got, string(m)) })
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, c.messages, got)
			assert.Len(t, rest, c.rest)
			assert.True(t, bytes.HasSuffix(c.raw, rest), "the rest is the end of the input")
		})
	}
}

// FuzzSplitFrames cuts a stream of made-up bytes in two. The place of the cut must not matter, and
// no byte may be lost or added.
func FuzzSplitFrames(f *testing.F) {
	f.Add(frame("handshake", "", "data"), uint16(7))
	f.Add(append(frame("a"), 0, 0, 0, 3, 'x'), uint16(6))
	f.Add([]byte{0, 1, 0, 0}, uint16(1))
	f.Add([]byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, raw []byte, cut uint16) {
		var whole []string
		rest, err := splitFrames(raw, func(m []byte) { whole = append(whole, string(m)) })
		if err == nil {
			require.True(t, bytes.Equal(raw, append(frame(whole...), rest...)), "frames and rest make up the input")
		} else {
			require.ErrorIs(t, err, errFrameTooLong)
			require.True(t, bytes.HasPrefix(raw, frame(whole...)))
		}

		at := min(int(cut), len(raw))
		var pieces []string
		collect := func(m []byte) { pieces = append(pieces, string(m)) }
		first, cutErr := splitFrames(raw[:at], collect)
		if cutErr == nil {
			_, cutErr = splitFrames(append(bytes.Clone(first), raw[at:]...), collect)
		}
		require.Equal(t, err, cutErr)
		require.Equal(t, whole, pieces)
	})
}

// Over a real connection messages come out as they went in, whatever their number and size: the
// small ones in order, and the others in order.
func TestStreamCarriesMessages(t *testing.T) {
	near, far := sockets(t)
	out, in := newStreamWire("out", near), newStreamWire("in", far)
	ended := make(chan error, 2)
	received := make(chan string, 1000)
	go func() { ended <- out.writeLoop() }()
	go func() {
		ended <- in.readLoop(nil, nil, func(c *chunk) bool {
			assert.Same(t, in, c.from)
			for _, m := range c.messages {
				received <- string(m)
			}
			c.put()
			return true
		})
	}()
	var sent []string
	for i := range 50 {
		sent = append(sent, strings.Repeat(string(rune('a'+i%26)), i*i*26), "")
	}
	sent = append(sent, strings.Repeat("z", MaxMessage))
	for _, m := range sent {
		require.NoError(t, out.Send([][]byte{[]byte(m)}))
	}
	small := func(m string) bool { return len(m) <= smallMessage }
	var got []string
	for range sent {
		got = append(got, <-received)
	}
	require.True(
		t,
		slices.Equal(slices.DeleteFunc(slices.Clone(sent), small), slices.DeleteFunc(slices.Clone(got), small)),
		"the large messages",
	)
	large := func(m string) bool { return !small(m) }
	require.True(t, slices.Equal(slices.DeleteFunc(sent, large), slices.DeleteFunc(got, large)), "the small messages")
	out.Close()
	out.Close() // a second Close does nothing
	require.NoError(t, <-ended)
	require.NoError(t, <-ended, "the end of the stream is not an error")
	in.Close()
}

// WireGuard gets each message intact, in order and once, whatever the size of a read, and where the
// buffer ends inside a message too. A peer that does not speak the protocol is given up.
func TestStreamIsReadByWireGuard(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var sent []string
	for range 300 {
		sent = append(sent, strings.Repeat(string(rune('a'+len(sent)%26)), random.IntN(MaxMessage+1)))
	}
	for name, most := range map[string]int{
		"a few bytes at a time": 700,
		"records of TLS":        16 << 10,
		"as much as there is":   1 << 30,
	} {
		t.Run(name, func(t *testing.T) {
			s := newStreamWire("one", &struct {
				io.Reader
				io.WriteCloser
			}{Reader: &atMost{Reader: strings.NewReader(string(frame(sent...))), most: most}})
			packets, sizes, from := make([][]byte, 4), make([]int, 4), make([]conn.Endpoint, 4)
			for i := range packets {
				packets[i] = make([]byte, MaxMessage)
			}
			var got []string
			for {
				n, err := s.receive(packets, sizes, from, func(Wire, []byte) {})
				for i := range n {
					got = append(got, string(packets[i][:sizes[i]]))
				}
				if err != nil {
					require.ErrorIs(t, err, io.EOF)
					break
				}
			}
			require.True(t, slices.Equal(sent, got))
		})
	}
}

// A writer that wakes up without frames keeps its buffers for the next messages.
func TestStreamKeepsItsBuffers(t *testing.T) {
	s := newStreamWire("one", nil)
	s.queued.large = make([]byte, 0, 1000)
	s.spare = frames{small: make([]byte, 0, 1000), large: make([]byte, 0, 1000)}
	taken := s.take()
	require.True(t, taken.empty())
	require.Equal(t, []int{1000, 1000, 1000}, []int{cap(s.queued.large), cap(s.spare.large), cap(s.spare.small)})
}

// atMost returns no more than most bytes from each read.
type atMost struct {
	io.Reader
	most int
}

func (a *atMost) Read(b []byte) (int, error) { return a.Reader.Read(b[:min(len(b), a.most)]) }

func TestStreamRefusesNonsense(t *testing.T) {
	near, far := sockets(t)
	_, err := io.WriteString(near, "GET /tunnel HTTP/1.1\r\n\r\n")
	require.NoError(t, err)
	err = newStreamWire("in", far).readLoop(nil, nil, func(*chunk) bool { t.Error("there is no message"); return true })
	require.ErrorIs(t, err, errFrameTooLong)
}

// sockets returns the two ends of a connection over loopback.
func sockets(t *testing.T) (near, far net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	near, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	far, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = errors.Join(near.Close(), far.Close()) })
	return near, far
}

// timeout bounds what must happen, on a busy machine too.
const timeout = 20 * time.Second
