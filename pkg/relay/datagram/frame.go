// Package datagram carries UDP through the relay: frames on a stream, and what little there is to remember of a flow.
package datagram

import (
	"encoding/binary"
	"fmt"
	"io"
)

// Kind is what a frame is.
type Kind byte

const (
	// Data is a datagram of a flow.
	Data Kind = iota
	// Refused says that nobody listens where the last datagram of a flow went.
	Refused
	// Ping asks for a Pong, so that a silent laptop is noticed.
	Ping
	// Pong answers it.
	Pong
)

// MaxPayload is the largest datagram that there can be.
const MaxPayload = 1<<16 - 1

const headerSize = 7

// Frame is a kind, the number of a flow and a datagram: on the wire 1 byte, 4 bytes and a length of 2, big-endian, and the payload.
type Frame struct {
	Kind    Kind
	Flow    uint32
	Payload []byte
}

// Append adds the frame to b.
func (f Frame) Append(b []byte) []byte {
	b = append(b, byte(f.Kind))
	b = binary.BigEndian.AppendUint32(b, f.Flow)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.Payload)))
	return append(b, f.Payload...)
}

// Read reads a frame. Its payload is in buffer, which has room for MaxPayload.
func Read(r io.Reader, buffer []byte) (Frame, error) {
	var header [headerSize]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return Frame{}, fmt.Errorf("read a datagram's frame: %w", err)
	}
	f := Frame{Kind: Kind(header[0]), Flow: binary.BigEndian.Uint32(header[1:])}
	if f.Kind > Pong {
		return Frame{}, fmt.Errorf("read a datagram's frame: there is no kind %d", f.Kind)
	}
	f.Payload = buffer[:binary.BigEndian.Uint16(header[5:])]
	if _, err := io.ReadFull(r, f.Payload); err != nil {
		return Frame{}, fmt.Errorf("read a datagram: %w", err)
	}
	return f, nil
}
