package mux

import (
	"bytes"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

// recorder writes down what a parser finds, byte by byte for kindData, so that it does not depend
// on how the data is cut.
type recorder struct{ bytes.Buffer }

func (r *recorder) handleControl(h header, payload []byte) error {
	r.Write(h.append(nil))
	r.Write(payload)
	return nil
}

func (r *recorder) handleData(stream uint32, b []byte) error {
	for _, octet := range b {
		r.Write(header{stream, kindData, 1}.append(nil))
		r.WriteByte(octet)
	}
	return nil
}

func frame(stream uint32, k kind, payload string) []byte {
	return append(header{stream, k, len(payload)}.append(nil), payload...)
}

func TestParserRefusesInvalidFrames(t *testing.T) {
	for name, b := range map[string][]byte{
		"kind zero":     frame(1, 0, ""),
		"unknown kind":  frame(1, kindWindow+1, ""),
		"long answer":   frame(1, kindAnswer, "ab"),
		"empty answer":  frame(1, kindAnswer, ""),
		"fin with data": frame(1, kindFin, "a"),
		"short window":  frame(1, kindWindow, "abc"),
		"long data":     header{1, kindData, maxData + 1}.append(nil),
		"long open":     header{1, kindOpen, maxData + 1}.append(nil),
		"HTTP":          []byte("GET / HTTP/1.1\r\n"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := new(parser).parse(b, new(recorder))
			require.ErrorIs(t, err, errFrame)
		})
	}
}

// FuzzParser checks that the frames that a parser finds do not depend on how the bytes are cut.
func FuzzParser(f *testing.F) {
	f.Add(frame(1, kindOpen, "header"), uint8(3))
	f.Add(append(frame(1, kindData, "hello"), frame(1, kindFin, "")...), uint8(1))
	f.Add(append(frame(2, kindAnswer, "\x01"), frame(1, kindWindow, "\x00\x00\x01\x00")...), uint8(7))
	f.Fuzz(func(t *testing.T, b []byte, cut uint8) {
		var whole, cutUp recorder
		_, err := new(parser).parse(b, &whole)
		var p parser
		var rest []byte
		for step := int(cut)%64 + 1; len(b) > 0; {
			n := min(step, len(b))
			var failed error
			if rest, failed = p.parse(append(rest, b[:n]...), &cutUp); failed != nil {
				require.Error(t, err)
				break
			}
			if len(rest) > frameHeader+maxData {
				t.Fatal("the parser returned more than one frame as incomplete")
			}
			b = b[n:]
		}
		require.Equal(t, whole.Bytes(), cutUp.Bytes())
	})
}

// FuzzConn feeds both kinds of ends with arbitrary bytes: the connection must end without a panic
// or a leak.
func FuzzConn(f *testing.F) {
	header, err := proto.Marshal(&agentv1.RelayHeader{Source: "10.0.0.1:1"})
	require.NoError(f, err)
	opened := frame(1, kindOpen, string(header))
	f.Add(append(opened, frame(1, kindData, "hello")...))
	f.Add(append(opened, append(frame(1, kindFin, ""), frame(1, kindFin, "")...)...))
	f.Add(append(opened, frame(1, kindWindow, "\xff\xff\xff\xff")...))
	f.Add(append(opened, frame(1, kindReset, "")...))
	f.Add(append(frame(1, kindAnswer, "\x01"), frame(1, kindData, "hello")...))
	accept := process(f, echo)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, accept := range []Accept{accept, nil} {
			peer, end := net.Pipe()
			c := New(end, accept)
			ended := make(chan struct{})
			go func() { defer close(ended); _ = c.Run() }()
			go func() { _, _ = peer.Write(b); _ = peer.Close() }()
			discard := make([]byte, 1024)
			for {
				if _, err := peer.Read(discard); err != nil {
					break
				}
			}
			<-ended
		}
	})
}
