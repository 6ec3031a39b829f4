// Package datagram carries UDP through a relay connection: frames for datagrams, the flows that are
// open, and reading a socket without a buffer while it is silent. Start from [Frame] and [Flows].
package datagram

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Kind is the kind of a frame.
type Kind byte

const (
	// Data is a datagram of a flow.
	Data Kind = iota
	// Refused means that nothing listens at the address that the last datagram of a flow was sent
	// to.
	Refused
	// Ping asks for a Pong, so that the agent notices a laptop that is gone.
	Ping
	// Pong answers it.
	Pong
)

// MaxPayload is the largest size of a datagram, in bytes.
const MaxPayload = 1<<16 - 1

const headerSize = 7

// Frame is one frame. On the wire it is its kind (1 byte), the number of its flow (4), the length
// of the payload (2), all big-endian, and the payload.
type Frame struct {
	Kind    Kind
	Flow    uint32
	Payload []byte
}

// Append appends the encoded frame to b.
func (f Frame) Append(b []byte) []byte {
	b = append(b, byte(f.Kind))
	b = binary.BigEndian.AppendUint32(b, f.Flow)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.Payload)))
	return append(b, f.Payload...)
}

// Read reads a frame. Its payload lies in buffer, which has room for MaxPayload bytes.
func Read(r io.Reader, buffer []byte) (Frame, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Frame{}, fmt.Errorf("read the frame of a datagram: %w", err)
	}
	f := Frame{Kind: Kind(header[0]), Flow: binary.BigEndian.Uint32(header[1:])}
	if f.Kind > Pong {
		return Frame{}, fmt.Errorf("read the frame of a datagram: kind %d does not exist", f.Kind)
	}
	f.Payload = buffer[:binary.BigEndian.Uint16(header[5:])]
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return Frame{}, fmt.Errorf("read a datagram: %w", err)
	}
	return f, nil
}
