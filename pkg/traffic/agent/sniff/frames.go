package sniff

import "encoding/binary"

// Frames follows where the frames of one direction of an HTTP/2 connection end (RFC 9113, section
// 4.1). The zero value is at the beginning; in the client's direction that is after the preface.
type Frames struct {
	header    [9]byte
	have      int    // bytes of the header so far
	remaining uint32 // bytes of the payload
	passed    bool   // a frame has ended
}

// Feed follows the next bytes. It returns the offset in b after the last frame that ends in b, or
// -1 when none does.
func (f *Frames) Feed(b []byte) int {
	boundary := -1
	for at := 0; at < len(b); {
		if f.remaining > 0 {
			n := min(uint32(len(b)-at), f.remaining)
			at += int(n)
			f.remaining -= n
		} else {
			n := copy(f.header[f.have:], b[at:])
			at += n
			f.have += n
			if f.have < len(f.header) {
				return boundary
			}
			f.have = 0
			f.remaining = binary.BigEndian.Uint32(f.header[:4]) >> 8
		}
		if f.remaining == 0 {
			boundary, f.passed = at, true
		}
	}
	return boundary
}

// Between reports whether a frame may be inserted now: a frame has ended, and no other has begun. A
// direction's first frame must stay the first.
func (f *Frames) Between() bool { return f.passed && f.remaining == 0 && f.have == 0 }

// Goaway is the frame that asks a client to open another connection for its next requests (RFC
// 9113, section 6.8). It names the highest possible stream, so the connection still serves all
// requests that have begun, and those that cross the frame.
var Goaway = []byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0}
