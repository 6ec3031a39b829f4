package relay_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"github.com/detour-dev/detour/pkg/relay"
	agentv1 "github.com/detour-dev/detour/rpc/agent/v1"
)

var full = &agentv1.RelayHeader{
	InterceptUid: "7e57", Token: bytes.Repeat([]byte{0xff}, 32),
	Source: "10.42.0.9:51234", Destination: "10.42.1.7:8080",
}

// Header and status cross a real connection, and reading them takes no byte of the payload behind
// them.
func TestHeaderAndStatusLeaveThePayload(t *testing.T) {
	for name, header := range map[string]*agentv1.RelayHeader{
		"all fields": full,
		"empty":      {},
		"IPv6":       {Source: "[fd00::9]:51234", Destination: "[fd00::7]:8080"},
	} {
		t.Run(name, func(t *testing.T) {
			here, there := pair(t)
			require.NoError(t, relay.WriteHeader(here, header))
			_, err := here.Write([]byte("GET / HTTP/1.1\r\n"))
			require.NoError(t, err)

			got, err := relay.ReadHeader(there)
			require.NoError(t, err)
			assert.True(t, proto.Equal(header, got), "sent %v, received %v", header, got)
			payload := make([]byte, 16)
			_, err = io.ReadFull(there, payload)
			require.NoError(t, err)
			assert.Equal(t, "GET / HTTP/1.1\r\n", string(payload))

			require.NoError(t, relay.WriteStatus(there, agentv1.RelayStatus_RELAY_STATUS_OK))
			_, err = there.Write([]byte("HTTP/1.1 200 OK\r\n"))
			require.NoError(t, err)
			status, err := relay.ReadStatus(here)
			require.NoError(t, err)
			assert.Equal(t, agentv1.RelayStatus_RELAY_STATUS_OK, status)
			payload = make([]byte, 17)
			_, err = io.ReadFull(here, payload)
			require.NoError(t, err)
			assert.Equal(t, "HTTP/1.1 200 OK\r\n", string(payload))
		})
	}
}

// The length on the wire is big-endian, and that of the message alone.
func TestWireFormatOfTheHeader(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, relay.WriteHeader(&out, full))
	assert.Equal(t, out.Len()-2, int(binary.BigEndian.Uint16(out.Bytes())))
	var again agentv1.RelayHeader
	require.NoError(t, proto.Unmarshal(out.Bytes()[2:], &again))
	assert.True(t, proto.Equal(full, &again))
}

func TestWriteHeaderReturnsErrors(t *testing.T) {
	broken := errors.New("broken pipe")
	for name, c := range map[string]struct {
		to     io.Writer
		header *agentv1.RelayHeader
		want   string
	}{
		"over the limit": {
			to: io.Discard, header: &agentv1.RelayHeader{Token: make([]byte, relay.MaxHeader)},
			want: "over the limit of 4096",
		},
		"not UTF-8": {to: io.Discard, header: &agentv1.RelayHeader{Source: "\xff"}, want: "encode relay header"},
		"lost peer": {to: failingWriter{broken}, header: full, want: "send relay header: broken pipe"},
	} {
		t.Run(name, func(t *testing.T) {
			require.ErrorContains(t, relay.WriteHeader(c.to, c.header), c.want)
		})
	}
	// A header of exactly the limit passes. The tag and length of the token take three bytes.
	var out bytes.Buffer
	require.NoError(t, relay.WriteHeader(&out, &agentv1.RelayHeader{Token: make([]byte, relay.MaxHeader-3)}))
	require.Equal(t, 2+relay.MaxHeader, out.Len())
	_, err := relay.ReadHeader(&out)
	require.NoError(t, err)
}

func TestReadHeaderReturnsErrors(t *testing.T) {
	var good bytes.Buffer
	require.NoError(t, relay.WriteHeader(&good, full))
	for name, c := range map[string]struct {
		from io.Reader
		is   error
		want string
	}{
		"nothing":       {from: strings.NewReader(""), is: io.EOF, want: "read relay header"},
		"half a length": {from: strings.NewReader("\x00"), is: io.ErrUnexpectedEOF, want: "read relay header"},
		"half a message": {
			from: bytes.NewReader(good.Bytes()[:good.Len()-1]), is: io.ErrUnexpectedEOF, want: "read relay header",
		},
		"one over the limit": {
			from: bytes.NewReader(append([]byte{0x10, 0x01}, make([]byte, 4097)...)),
			want: "4097 bytes is over the limit of 4096",
		},
		// A TLS or HTTP client at the wrong port sends a huge length. It is refused before its
		// bytes are awaited.
		"HTTP at the wrong port": {
			from: io.MultiReader(strings.NewReader("GE"), iotest.ErrReader(errors.New("read on"))),
			want: "over the limit",
		},
		"not protobuf": {from: strings.NewReader("\x00\x02\xff\xff"), want: "decode relay header"},
		"cut off": {
			from: iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(good.Bytes()))),
			is:   iotest.ErrTimeout, want: "read relay header",
		},
	} {
		t.Run(name, func(t *testing.T) {
			header, err := relay.ReadHeader(c.from)
			require.ErrorContains(t, err, c.want)
			assert.Nil(t, header)
			if c.is != nil {
				assert.ErrorIs(t, err, c.is)
			}
		})
	}
	// A slow peer is not an error.
	header, err := relay.ReadHeader(iotest.OneByteReader(bytes.NewReader(good.Bytes())))
	require.NoError(t, err)
	assert.True(t, proto.Equal(full, header))
}

func TestStatusCrossesTheWire(t *testing.T) {
	for number, name := range agentv1.RelayStatus_name {
		t.Run(name, func(t *testing.T) {
			var wire bytes.Buffer
			require.NoError(t, relay.WriteStatus(&wire, agentv1.RelayStatus(number)))
			assert.Equal(t, []byte{byte(number)}, wire.Bytes())
			got, err := relay.ReadStatus(&wire)
			require.NoError(t, err)
			assert.Equal(t, agentv1.RelayStatus(number), got)
		})
	}
	t.Run("a status of a newer version", func(t *testing.T) {
		got, err := relay.ReadStatus(strings.NewReader("\xc8"))
		require.NoError(t, err)
		assert.NotEqual(t, agentv1.RelayStatus_RELAY_STATUS_OK, got)
		assert.Equal(t, agentv1.RelayStatus(200), got)
	})
	t.Run("the peer is gone", func(t *testing.T) {
		got, err := relay.ReadStatus(strings.NewReader(""))
		require.ErrorIs(t, err, io.EOF)
		assert.Equal(t, agentv1.RelayStatus_RELAY_STATUS_UNSPECIFIED, got)
		require.ErrorContains(t, relay.WriteStatus(failingWriter{net.ErrClosed}, 1), "send relay status")
	})
}

// FuzzReadHeader feeds the port that every pod of the cluster can reach. A header that can be read
// is written back the same, and nothing behind the header is read.
func FuzzReadHeader(f *testing.F) {
	var good bytes.Buffer
	require.NoError(f, relay.WriteHeader(&good, full))
	f.Add(good.Bytes())
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add([]byte{0, 0, 1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		in := bytes.NewReader(raw)
		header, err := relay.ReadHeader(in)
		if err != nil {
			return
		}
		length := int(binary.BigEndian.Uint16(raw))
		require.LessOrEqual(t, length, relay.MaxHeader)
		require.Equal(t, len(raw)-2-length, in.Len(), "the payload stays for the next reader")
		var out bytes.Buffer
		require.NoError(t, relay.WriteHeader(&out, header))
		again, err := relay.ReadHeader(&out)
		require.NoError(t, err)
		require.True(t, proto.Equal(header, again))
	})
}

// failingWriter fails each Write.
type failingWriter struct{ err error }

func (w failingWriter) Write([]byte) (int, error) { return 0, w.err }

// pair returns the two ends of a connection over loopback.
func pair(t *testing.T) (here, there net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	here, err = net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	there, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = here.Close(); _ = there.Close() })
	return here, there
}
