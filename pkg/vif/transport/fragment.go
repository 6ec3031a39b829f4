package transport

import (
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"time"
)

// The VIF's MTU is that of a stream, so that a change of path changes nothing for the TCP inside. A datagram is not that large: over
// UDP a message is cut into pieces of one size, which the kernel can take as one (GSO) and give back as one (GRO), each with this
// header: type, number of pieces, which of them, bytes of padding in the last one, and 4 bytes that tell messages apart.
// IP's own fragments would do the same, but firewalls and load balancers drop them.
const (
	FragmentType       = 7
	fragmentHeaderSize = 8
	maxFragments       = 64 // what GSO takes at once
	// maxDatagram is a UDP payload that fits the smallest MTU of IPv6, 1280: it arrives anywhere.
	MaxDatagram = 1232
	// An end that has lost pieces lately says so in its probes, and then gets one more of each message of so many pieces or more: the XOR
	// of the others, which makes up for any one that is lost. Without it a message is lost with each of its pieces: of 14, on a link
	// that loses one datagram in a hundred, one in eight.
	parityFrom = 4
	lossMemory = 10 * time.Second
	// underWay is how many messages of one sender may be incomplete at once. Pieces hardly overtake each other.
	inFlight = 16
)

func isFragment(m []byte) bool { return len(m) > fragmentHeaderSize && m[0] == FragmentType }

// piecesOf says in how many pieces a message of so many bytes is cut, and how long they are.
func fragmentsOf(message int) (pieces, size int) {
	pieces = (message + MaxDatagram - fragmentHeaderSize - 1) / (MaxDatagram - fragmentHeaderSize)
	return pieces, fragmentHeaderSize + (message+pieces-1)/pieces
}

// cut appends the pieces of a message to buf, one after the other, with a spare one if asked to, and says how many and how long they are. It
// appends nothing when there is no room without making buf anew.
func appendFragments(buf, message []byte, id uint32, spare bool) (_ []byte, sent, size int) {
	pieces, size := fragmentsOf(len(message))
	payload := size - fragmentHeaderSize
	if sent = pieces; spare && pieces >= parityFrom {
		sent++
	}
	if sent > maxFragments || cap(buf)-len(buf) < sent*size {
		return buf, 0, 0
	}
	pad := pieces*payload - len(message)
	header := func(index int) {
		buf = append(buf, FragmentType, byte(pieces), byte(index), byte(pad))
		buf = binary.BigEndian.AppendUint32(buf, id)
	}
	start := len(buf)
	for i := range pieces {
		header(i)
		n := min(payload, len(message))
		buf = append(buf, message[:n]...)
		message = message[n:]
	}
	buf = append(buf, make([]byte, pad)...)
	if sent == pieces {
		return buf, sent, size
	}
	header(pieces)
	sum := buf[len(buf) : len(buf)+payload]
	copy(sum, buf[start+fragmentHeaderSize:])
	for i := 1; i < pieces; i++ {
		subtle.XORBytes(sum, sum, buf[start+i*size+fragmentHeaderSize:][:payload])
	}
	return buf[:len(buf)+payload], sent, size
}

// joiner puts the pieces of one sender together again. It believes nothing: what comes out is for WireGuard to judge.
type reassembler struct {
	messages   [inFlight]partial
	lastLoss   atomic.Int64 // when a piece was missed last, in Unix nanoseconds; 0 for never
	sendParity atomic.Bool  // the other end asks for spare pieces
}

// loses says whether pieces were lost lately.
func (j *reassembler) loses(now time.Time) bool {
	at := j.lastLoss.Load()
	return at != 0 && now.Sub(time.Unix(0, at)) < lossMemory
}

// assembly is a message that is not yet complete.
type partial struct {
	id       uint32
	count    int // 0: not in use
	size     int // of a piece's payload
	pad      int
	received uint64 // one bit for each piece, and for the spare one after them
	done     bool
	contents []byte
}

// add takes a piece and returns the message that it completes, if it does; the next add may overwrite it.
func (j *reassembler) add(piece []byte) []byte {
	pieces, index, pad, id, payload := int(piece[1]), int(piece[2]), int(piece[3]), binary.BigEndian.Uint32(piece[4:]), piece[fragmentHeaderSize:]
	total := pieces*len(payload) - pad
	if pieces == 0 || pieces > maxFragments || index > pieces || index == 64 || pad >= len(payload) || total > MaxMessage {
		return nil
	}
	a := j.partialOf(partial{id: id, count: pieces, size: len(payload), pad: pad})
	if a.done {
		return nil
	}
	if need := (pieces + 1) * len(payload); len(a.contents) < need {
		a.contents = make([]byte, need)
	}
	copy(a.contents[index*a.size:], payload)
	a.received |= 1 << index
	if bits.OnesCount64(a.received) < pieces {
		return nil
	}
	a.done = true
	if missing := bits.TrailingZeros64(^a.received); missing < pieces {
		j.lastLoss.Store(time.Now().UnixNano())
		a.restore(missing)
	}
	return a.contents[:total]
}

// skip takes note of a message that is complete, by its first piece: what comes of it later is not a new one.
func (j *reassembler) skip(first []byte) {
	j.partialOf(partial{id: binary.BigEndian.Uint32(first[4:]), count: int(first[1]), size: len(first) - fragmentHeaderSize, pad: int(first[3])}).done = true
}

// assembly finds the place of a message.
func (j *reassembler) partialOf(of partial) *partial {
	a := &j.messages[of.id%inFlight]
	if a.count != of.count || a.id != of.id || a.size != of.size || a.pad != of.pad {
		if a.count != 0 && !a.done { // that one is lost
			j.lastLoss.Store(time.Now().UnixNano())
		}
		of.contents = a.contents
		*a = of
	}
	return a
}

// restore makes a lost piece of all the others.
func (a *partial) restore(missing int) {
	lost := a.contents[missing*a.size:][:a.size]
	clear(lost)
	for i := range a.count + 1 {
		if i != missing {
			subtle.XORBytes(lost, lost, a.contents[i*a.size:][:a.size])
		}
	}
}

// joinInOrder puts a message together of which all pieces lie in datagrams, each of that size, one after the other. It returns its length and
// that of the pieces, 0 when they do not.
func reassembleInOrder(packet, datagrams []byte, size int) (n, taken int) {
	head := datagrams[:fragmentHeaderSize]
	pieces, pad, payload := int(head[1]), int(head[3]), size-fragmentHeaderSize
	taken, n = pieces*size, pieces*payload-pad
	if head[2] != 0 || pieces == 0 || taken > len(datagrams) || pad >= payload || n > len(packet) {
		return 0, 0
	}
	for i := 1; i < pieces; i++ {
		h := datagrams[i*size : i*size+fragmentHeaderSize]
		if h[0] != FragmentType || h[1] != head[1] || int(h[2]) != i || h[3] != head[3] || [4]byte(h[4:]) != [4]byte(head[4:]) {
			return 0, 0
		}
	}
	for i := range pieces {
		copy(packet[i*payload:n], datagrams[i*size+fragmentHeaderSize:(i+1)*size])
	}
	return n, taken
}
