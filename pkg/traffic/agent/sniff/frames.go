package sniff

import "encoding/binary"

// Frames follows where the frames of one direction of an HTTP/2 connection end (RFC 9113, 4.1). The zero value is at its beginning,
// for the client's direction after the preface.
type Frames struct {
	header [9]byte
	have   int    // bytes of the header
	left   uint32 // bytes of the payload that are still to come
	passed bool   // a frame has ended
}

// Feed reads on and returns the offset in b after the last frame that ends in it, or -1 when none does.
func (f *Frames) Feed(b []byte) int {
	boundary := -1
	for at := 0; at < len(b); {
		if f.left > 0 {
			n := min(uint32(len(b)-at), f.left)
			at += int(n)
			f.left -= n
		} else {
			n := copy(f.header[f.have:], b[at:])
			at += n
			f.have += n
			if f.have < len(f.header) {
				return boundary
			}
			f.have = 0
			f.left = binary.BigEndian.Uint32(f.header[:4]) >> 8
		}
		if f.left == 0 {
			boundary, f.passed = at, true
		}
	}
	return boundary
}

// Between says whether a frame may be put in now: one has passed, and none is under way. The first frame of a direction must stay
// the first.
func (f *Frames) Between() bool { return f.passed && f.left == 0 && f.have == 0 }

// Goaway is the frame that asks a client to open another connection for what it asks next (RFC 9113, 6.8). It names the highest
// stream there can be: everything that is under way, and what crosses it, is still served.
var Goaway = []byte{0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0}
