package vif

import (
	"encoding/binary"
)

// The VIF's MTU is that of a stream, so that a change of path changes nothing for the TCP inside. A datagram is not that large: over
// UDP a message is cut into pieces of one size, which the kernel can take as one (GSO) and give back as one (GRO), each with this
// header: type, number of pieces, which of them, bytes of padding in the last one, and 4 bytes that tell messages apart.
// IP's own fragments would do the same, but firewalls and load balancers drop them.
const (
	pieceType   = 7
	pieceHeader = 8
	maxPieces   = 64 // what GSO takes at once
	// maxDatagram is a UDP payload that fits the smallest MTU of IPv6, 1280: it arrives anywhere.
	maxDatagram = 1232
	// underWay is how many messages of one sender may be incomplete at once. Pieces hardly overtake each other.
	underWay = 16
)

func isPiece(m []byte) bool { return len(m) > pieceHeader && m[0] == pieceType }

// piecesOf says in how many pieces a message of so many bytes is cut, and how long they are.
func piecesOf(message int) (pieces, size int) {
	pieces = (message + maxDatagram - pieceHeader - 1) / (maxDatagram - pieceHeader)
	return pieces, pieceHeader + (message+pieces-1)/pieces
}

// cut appends the pieces of a message to buf, one after the other, and says how many and how long they are. It appends nothing
// when there is no room without making buf anew.
func cut(buf, message []byte, id uint32) (_ []byte, pieces, size int) {
	pieces, size = piecesOf(len(message))
	payload := size - pieceHeader
	if pieces > maxPieces || cap(buf)-len(buf) < pieces*size {
		return buf, 0, 0
	}
	pad := pieces*payload - len(message)
	for i := range pieces {
		buf = append(buf, pieceType, byte(pieces), byte(i), byte(pad))
		buf = binary.BigEndian.AppendUint32(buf, id)
		n := min(payload, len(message))
		buf = append(buf, message[:n]...)
		message = message[n:]
	}
	return append(buf, make([]byte, pad)...), pieces, size
}

// joiner puts the pieces of one sender together again. It believes nothing: what comes out is for WireGuard to judge.
type joiner struct {
	messages [underWay]assembly
}

// assembly is a message that is not yet complete.
type assembly struct {
	id       uint32
	pieces   int // 0: not in use
	size     int // of a piece's payload
	pad      int
	have     uint64 // one bit for each piece
	contents []byte
}

// add takes a piece and returns the message that it completes, if it does; the next add may overwrite it.
func (j *joiner) add(piece []byte) []byte {
	pieces, index, pad, id, payload := int(piece[1]), int(piece[2]), int(piece[3]), binary.BigEndian.Uint32(piece[4:]), piece[pieceHeader:]
	total := pieces*len(payload) - pad
	if pieces > maxPieces || index >= pieces || pad >= len(payload) || total > maxMessage {
		return nil
	}
	a := &j.messages[id%underWay]
	if a.pieces != pieces || a.id != id || a.size != len(payload) || a.pad != pad {
		// Another message: an incomplete older one is lost.
		*a = assembly{id: id, pieces: pieces, size: len(payload), pad: pad, contents: a.contents}
		if need := pieces * len(payload); cap(a.contents) < need {
			a.contents = make([]byte, need)
		}
		a.contents = a.contents[:pieces*len(payload)]
	}
	copy(a.contents[index*a.size:], payload)
	a.have |= 1 << index
	if a.have != 1<<pieces-1 {
		return nil
	}
	a.pieces = 0
	return a.contents[:total]
}

// joinInOrder puts a message together of which all pieces lie in datagrams, each of that size, one after the other. It returns its length and
// that of the pieces, 0 when they do not.
func joinInOrder(packet, datagrams []byte, size int) (n, taken int) {
	head := datagrams[:pieceHeader]
	pieces, pad, payload := int(head[1]), int(head[3]), size-pieceHeader
	taken, n = pieces*size, pieces*payload-pad
	if head[2] != 0 || pieces == 0 || taken > len(datagrams) || pad >= payload || n > len(packet) {
		return 0, 0
	}
	for i := 1; i < pieces; i++ {
		h := datagrams[i*size : i*size+pieceHeader]
		if h[0] != pieceType || h[1] != head[1] || int(h[2]) != i || h[3] != head[3] || [4]byte(h[4:]) != [4]byte(head[4:]) {
			return 0, 0
		}
	}
	for i := range pieces {
		copy(packet[i*payload:n], datagrams[i*size+pieceHeader:(i+1)*size])
	}
	return n, taken
}
