package mux

import (
	"encoding/binary"
	"errors"
	"fmt"
)

const (
	frameHeader = 8 // stream, kind and length: see the package comment
	// maxFrame is the longest frame: one TLS record.
	maxFrame = 16 << 10
	maxData  = maxFrame - frameHeader
)

// kind is the kind of a frame.
type kind byte

const (
	kindOpen   kind = iota + 1 // agentv1.RelayHeader: asks the laptop for a stream
	kindAnswer                 // one byte, agentv1.RelayStatus: answers kindOpen
	kindData                   // bytes of the stream
	kindFin                    // no more data follows
	kindReset                  // both directions end
	kindWindow                 // 4 bytes: how many more bytes of data the peer may send
)

var errFrame = errors.New("invalid frame")

// header is the beginning of a frame.
type header struct {
	stream uint32
	kind   kind
	length int // without the header
}

func (h header) append(to []byte) []byte {
	to = binary.BigEndian.AppendUint32(to, h.stream)
	return append(to, byte(h.kind), byte(h.length>>16), byte(h.length>>8), byte(h.length))
}

// parseHeader reads the header at the beginning of b, which has at least frameHeader bytes.
func parseHeader(b []byte) (header, error) {
	h := header{
		stream: binary.BigEndian.Uint32(b),
		kind:   kind(b[4]),
		length: int(b[5])<<16 | int(b[6])<<8 | int(b[7]),
	}
	var ok bool
	switch h.kind {
	case kindOpen, kindData:
		ok = h.length <= maxData
	case kindAnswer:
		ok = h.length == 1
	case kindFin, kindReset:
		ok = h.length == 0
	case kindWindow:
		ok = h.length == 4
	}
	if !ok {
		return h, fmt.Errorf("%w: kind %d with %d bytes", errFrame, h.kind, h.length)
	}
	return h, nil
}

// frameHandler receives the frames that a parser finds. It must not keep the slices.
type frameHandler interface {
	handleControl(h header, payload []byte) error
	handleData(stream uint32, b []byte) error
}

// parser finds the frames in a stream of bytes. It passes data on as it arrives, and other frames
// when they are complete.
type parser struct {
	stream    uint32 // whose data frame is being read
	remaining int    // bytes of that frame
}

// parse gives the frames in b to h, and returns the beginning of a frame that is not complete.
func (p *parser) parse(b []byte, h frameHandler) (rest []byte, err error) {
	for {
		if p.remaining > 0 {
			n := min(p.remaining, len(b))
			if n == 0 {
				return b, nil
			}
			p.remaining -= n
			if err := h.handleData(p.stream, b[:n]); err != nil {
				return nil, err
			}
			b = b[n:]
			continue
		}
		if len(b) < frameHeader {
			return b, nil
		}
		frame, err := parseHeader(b)
		if err != nil {
			return nil, err
		}
		if frame.kind == kindData {
			p.stream, p.remaining = frame.stream, frame.length
			b = b[frameHeader:]
			continue
		}
		end := frameHeader + frame.length
		if len(b) < end {
			return b, nil
		}
		if err := h.handleControl(frame, b[frameHeader:end]); err != nil {
			return nil, err
		}
		b = b[end:]
	}
}
