package mux

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A frame begins with the number of its stream (4 bytes), what it is (1), and the length of what follows (3), big-endian.
const (
	frameHeader = 8
	// maxFrame is the longest frame: one record of TLS.
	maxFrame = 16 << 10
	maxData  = maxFrame - frameHeader
)

// kind is what a frame is.
type kind byte

const (
	open   kind = iota + 1 // agentv1.RelayHeader: asks the laptop for a stream
	answer                 // one byte, agentv1.RelayStatus: answers open
	data                   // bytes of the stream
	fin                    // no more data follows
	reset                  // the stream is cut
	window                 // 4 bytes: so many more bytes of data may be sent
)

var errFrame = errors.New("a frame that cannot be")

// header is the beginning of a frame.
type header struct {
	stream uint32
	kind   kind
	length int
}

func (h header) append(to []byte) []byte {
	to = binary.BigEndian.AppendUint32(to, h.stream)
	return append(to, byte(h.kind), byte(h.length>>16), byte(h.length>>8), byte(h.length))
}

// parseHeader reads the header at the beginning of b, which is long enough.
func parseHeader(b []byte) (header, error) {
	h := header{stream: binary.BigEndian.Uint32(b), kind: kind(b[4]), length: int(b[5])<<16 | int(b[6])<<8 | int(b[7])}
	var ok bool
	switch h.kind {
	case open, data:
		ok = h.length <= maxData
	case answer:
		ok = h.length == 1
	case fin, reset:
		ok = h.length == 0
	case window:
		ok = h.length == 4
	}
	if !ok {
		return h, fmt.Errorf("%w: kind %d with %d bytes", errFrame, h.kind, h.length)
	}
	return h, nil
}

// receiver gets what a parser finds. What it is given is only lent.
type receiver interface {
	control(h header, payload []byte) error
	data(stream uint32, b []byte) error
}

// parser takes frames apart. Data is passed on as it comes, all else when it is whole.
type parser struct {
	stream uint32 // whose data is under way
	left   int    // of it
}

// parse gives what b holds to r and returns what is not whole.
func (p *parser) parse(b []byte, r receiver) (rest []byte, err error) {
	for {
		if p.left > 0 {
			n := min(p.left, len(b))
			if n == 0 {
				return b, nil
			}
			p.left -= n
			if err := r.data(p.stream, b[:n]); err != nil {
				return nil, err
			}
			b = b[n:]
			continue
		}
		if len(b) < frameHeader {
			return b, nil
		}
		h, err := parseHeader(b)
		if err != nil {
			return nil, err
		}
		if h.kind == data {
			p.stream, p.left = h.stream, h.length
			b = b[frameHeader:]
			continue
		}
		end := frameHeader + h.length
		if len(b) < end {
			return b, nil
		}
		if err := r.control(h, b[frameHeader:end]); err != nil {
			return nil, err
		}
		b = b[end:]
	}
}
