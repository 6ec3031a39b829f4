package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds the waits of the tests.
const patience = 30 * time.Second

func TestFramesCrossTheWire(t *testing.T) {
	frames := []Frame{
		{Kind: Data, Flow: 1, Payload: []byte("request")},
		{Kind: Data, Flow: 1<<32 - 1, Payload: bytes.Repeat([]byte("x"), MaxPayload)},
		{Kind: Data, Flow: 2, Payload: []byte{}},
		{Kind: Refused, Flow: 7, Payload: []byte{}},
		{Kind: Ping, Payload: []byte{}},
		{Kind: Pong, Payload: []byte{}},
	}
	var wire []byte
	for _, f := range frames {
		wire = f.Append(wire)
	}
	r, buffer := bytes.NewReader(wire), make([]byte, MaxPayload)
	for _, want := range frames {
		got, err := Read(r, buffer)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	_, err := Read(r, buffer)
	require.ErrorIs(t, err, io.EOF)
	_, err = Read(bytes.NewReader([]byte("GET / HTTP/1.1\r\n")), buffer)
	require.ErrorContains(t, err, "does not exist")
	_, err = Read(bytes.NewReader(wire[:10]), buffer)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// FuzzRead checks that each frame that can be read is written back the same.
func FuzzRead(f *testing.F) {
	f.Add(Frame{Data, 5, []byte("request")}.Append(nil))
	f.Add(Frame{Pong, 0, nil}.Append([]byte{2, 0, 0, 0, 1, 0, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, buffer := bytes.NewReader(b), make([]byte, MaxPayload)
		var again []byte
		for {
			frame, err := Read(r, buffer)
			if err != nil {
				break
			}
			again = frame.Append(again)
		}
		if !bytes.HasPrefix(b, again) {
			t.Fatal("the frames are not written as they were read")
		}
	})
}

func TestFlowsDropTheOldestAtTheirLimit(t *testing.T) {
	var mu sync.Mutex
	var dropped []string
	count := 0
	failed := errors.New("no socket")
	make := func() (int, error) {
		if count++; count > 3 {
			return 0, failed
		}
		return count, nil
	}
	f := NewFlows(time.Hour, 2, func(k string, v int) {
		mu.Lock()
		defer mu.Unlock()
		dropped = append(dropped, fmt.Sprint(k, v))
	})
	get := func(k string) int {
		v, err := f.Get(k, make)
		require.NoError(t, err)
		return v
	}
	assert.Equal(t, 1, get("a"))
	assert.Equal(t, 2, get("b"))
	assert.Equal(t, 1, get("a"))
	assert.Equal(t, 3, get("c"), "the limit is reached")
	assert.Equal(t, []string{"b2"}, dropped, "the flow that was silent for longest is dropped")
	f.Touch("a")
	assert.Equal(t, 2, f.Len())
	_, err := f.Get("d", make)
	require.ErrorIs(t, err, failed)
	f.Close()
	assert.ElementsMatch(t, []string{"b2", "c3", "a1"}, dropped)
	_, err = f.Get("e", make)
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestFlowsDropIdleFlows(t *testing.T) {
	gone := make(chan string, 10)
	f := NewFlows(20*time.Millisecond, 10, func(k string, _ int) { gone <- k })
	defer f.Close()
	for range 2 { // the second time after all flows were dropped
		_, err := f.Get("a", func() (int, error) { return 1, nil })
		require.NoError(t, err)
		select {
		case k := <-gone:
			assert.Equal(t, "a", k)
		case <-time.After(patience):
			t.Fatal("the flow was not dropped")
		}
	}
}

func TestReceiveReportsDatagramsAndRefusals(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	c, err := net.Dial("udp", server.LocalAddr().String())
	require.NoError(t, err)
	got, refused, ended := make(chan string, 10), make(chan bool, 10), make(chan error, 1)
	go func() {
		ended <- Receive(c, func(b []byte) { got <- string(b) }, func() { refused <- true })
	}()
	for _, text := range []string{"one", "", "three"} { // an empty datagram counts
		_, err = server.WriteTo([]byte(text), c.LocalAddr())
		require.NoError(t, err)
		select {
		case g := <-got:
			assert.Equal(t, text, g)
		case <-time.After(patience):
			t.Fatal("no datagram arrived")
		}
	}
	require.NoError(t, server.Close())
	_, err = c.Write([]byte("refused"))
	require.NoError(t, err)
	select {
	case <-refused:
	case <-time.After(patience):
		t.Fatal("the refusal was not reported")
	}
	require.NoError(t, c.Close())
	select {
	case err := <-ended:
		require.ErrorIs(t, err, net.ErrClosed)
	case <-time.After(patience):
		t.Fatal("Receive did not end")
	}
}
