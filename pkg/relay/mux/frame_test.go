package mux

import (
	"bytes"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// recorder keeps what a parser finds, data as one piece for each frame or part of it.
type recorder struct{ bytes.Buffer }

func (r *recorder) control(h header, payload []byte) error {
	r.Write(h.append(nil))
	r.Write(payload)
	return nil
}

func (r *recorder) data(stream uint32, b []byte) error {
	for _, one := range b {
		r.Write(header{stream, data, 1}.append(nil))
		r.WriteByte(one)
	}
	return nil
}

func frame(stream uint32, k kind, payload string) []byte {
	return append(header{stream, k, len(payload)}.append(nil), payload...)
}

func TestParserRefuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"no kind":       frame(1, 0, ""),
		"unknown":       frame(1, window+1, ""),
		"long answer":   frame(1, answer, "ab"),
		"no answer":     frame(1, answer, ""),
		"fin with data": frame(1, fin, "a"),
		"short window":  frame(1, window, "abc"),
		"long data":     header{1, data, maxData + 1}.append(nil),
		"long open":     header{1, open, maxData + 1}.append(nil),
		"HTTP":          []byte("GET / HTTP/1.1\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := new(parser).parse(b, new(recorder))
			require.ErrorIs(t, err, errFrame)
		})
	}
}

// FuzzParser: what is found does not depend on how the bytes are cut.
func FuzzParser(f *testing.F) {
	f.Add(frame(1, open, "header"), uint8(3))
	f.Add(append(frame(1, data, "hello"), frame(1, fin, "")...), uint8(1))
	f.Add(append(frame(2, answer, "\x01"), frame(1, window, "\x00\x00\x01\x00")...), uint8(7))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		var whole, pieces recorder
		_, err := new(parser).parse(b, &whole)
		var p parser
		var rest []byte
		for step := int(cut)%64 + 1; len(b) > 0; {
			n := min(step, len(b))
			var failed error
			if rest, failed = p.parse(append(rest, b[:n]...), &pieces); failed != nil {
				require.Error(t, err)
				break
			}
			if len(rest) > frameHeader+maxData {
				t.Fatal("more than a frame is kept")
			}
			b = b[n:]
		}
		require.Equal(t, whole.Bytes(), pieces.Bytes())
	})
}

// FuzzConn feeds both ends with what another may send.
func FuzzConn(f *testing.F) {
	header, err := proto.Marshal(&agentv1.RelayHeader{Source: "10.0.0.1:1"})
	require.NoError(f, err)
	begun := frame(1, open, string(header))
	f.Add(append(begun, frame(1, data, "hello")...))
	f.Add(append(begun, append(frame(1, fin, ""), frame(1, fin, "")...)...))
	f.Add(append(begun, frame(1, window, "\xff\xff\xff\xff")...))
	f.Add(append(begun, frame(1, reset, "")...))
	f.Add(append(frame(1, answer, "\x01"), frame(1, data, "hello")...))
	accept := process(f, echo)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, accept := range []Accept{accept, nil} {
			mine, theirs := net.Pipe()
			c := New(theirs, accept)
			ended := make(chan struct{})
			go func() { defer close(ended); _ = c.Run() }()
			go func() { _, _ = mine.Write(b); _ = mine.Close() }()
			discard := make([]byte, 1024)
			for {
				if _, err := mine.Read(discard); err != nil {
					break
				}
			}
			<-ended
		}
	})
}
