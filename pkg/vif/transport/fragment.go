package transport

import (
	"crypto/subtle"
	"encoding/binary"
	"math/bits"
	"sync/atomic"
	"time"
)

// The VIF's MTU is that of a stream, so that a change of path changes nothing for the TCP inside. A
// datagram is smaller: over UDP a message is cut into fragments of one size, which the kernel takes
// as one (GSO) and gives back as one (GRO). Each fragment has this header: type, number of
// fragments, index, bytes of padding in the last one, and 4 bytes that tell messages apart. IP's
// own fragments would do the same, but firewalls and load balancers drop them.
const (
	FragmentType       = 7
	fragmentHeaderSize = 8
	maxFragments       = 64 // the most that GSO takes at once
	// MaxDatagram is a UDP payload that fits the smallest MTU of IPv6, 1280: it arrives anywhere.
	MaxDatagram = 1232
	// A parity fragment is the XOR of a message's other fragments, and makes up for any one of
	// them. An end that has lost fragments within lossMemory asks for them in its probes, and then
	// gets one with each message of at least parityFrom fragments.
	//
	// Gain: without parity a message is lost with any of its fragments; of 14 fragments, on a link
	// that loses one datagram in a hundred, that is one message in eight. Cost: one more datagram a
	// message, and the XOR (BenchmarkFragments), only while fragments get lost. The figures are in
	// docs/design/performance-log.md.
	parityFrom = 4
	lossMemory = 10 * time.Second
	// inFlight is how many messages of one sender may be incomplete at once. Fragments hardly
	// overtake each other.
	inFlight = 16
)

func isFragment(m []byte) bool { return len(m) > fragmentHeaderSize && m[0] == FragmentType }

// fragmentsOf returns the number of fragments for a message of so many bytes, and the length of a
// fragment.
func fragmentsOf(message int) (fragments, size int) {
	fragments = (message + MaxDatagram - fragmentHeaderSize - 1) / (MaxDatagram - fragmentHeaderSize)
	return fragments, fragmentHeaderSize + (message+fragments-1)/fragments
}

// appendFragments appends the fragments of a message to buf, one after the other, with a parity
// fragment if parity is set. It returns how many fragments there are, and how long one is. When buf
// has no room it appends nothing.
func appendFragments(buf, message []byte, id uint32, parity bool) (_ []byte, sent, size int) {
	fragments, size := fragmentsOf(len(message))
	payload := size - fragmentHeaderSize
	if sent = fragments; parity && fragments >= parityFrom {
		sent++
	}
	if sent > maxFragments || cap(buf)-len(buf) < sent*size {
		return buf, 0, 0
	}
	pad := fragments*payload - len(message)
	header := func(index int) {
		buf = append(buf, FragmentType, byte(fragments), byte(index), byte(pad))
		buf = binary.BigEndian.AppendUint32(buf, id)
	}
	start := len(buf)
	for i := range fragments {
		header(i)
		n := min(payload, len(message))
		buf = append(buf, message[:n]...)
		message = message[n:]
	}
	buf = append(buf, make([]byte, pad)...)
	if sent == fragments {
		return buf, sent, size
	}
	header(fragments)
	sum := buf[len(buf) : len(buf)+payload]
	copy(sum, buf[start+fragmentHeaderSize:])
	for i := 1; i < fragments; i++ {
		subtle.XORBytes(sum, sum, buf[start+i*size+fragmentHeaderSize:][:payload])
	}
	return buf[:len(buf)+payload], sent, size
}

// reassembler puts the fragments of one sender together again. It trusts nothing: WireGuard judges
// the messages.
type reassembler struct {
	messages   [inFlight]partial
	lastLoss   atomic.Int64 // when a fragment was last missing, in Unix nanoseconds; 0 for never
	sendParity atomic.Bool  // the other end asks for parity fragments
}

// loses reports whether fragments were lost lately.
func (r *reassembler) loses(now time.Time) bool {
	at := r.lastLoss.Load()
	return at != 0 && now.Sub(time.Unix(0, at)) < lossMemory
}

// partial is an incomplete message.
type partial struct {
	id       uint32
	count    int // of fragments; 0 for an unused place
	size     int // of a fragment's payload
	pad      int
	received uint64 // a bit for each fragment, and one for the parity fragment
	done     bool
	contents []byte
}

// add takes a fragment, and returns the message that it completes, if any. The next add may
// overwrite that message.
func (r *reassembler) add(fragment []byte) []byte {
	fragments, index, pad := int(fragment[1]), int(fragment[2]), int(fragment[3])
	id, payload := binary.BigEndian.Uint32(fragment[4:]), fragment[fragmentHeaderSize:]
	total := fragments*len(payload) - pad
	if fragments == 0 || fragments > maxFragments || index > fragments || index == 64 {
		return nil
	}
	if pad >= len(payload) || total > MaxMessage {
		return nil
	}
	p := r.partialOf(partial{id: id, count: fragments, size: len(payload), pad: pad})
	if p.done {
		return nil
	}
	if need := (fragments + 1) * len(payload); len(p.contents) < need {
		p.contents = make([]byte, need)
	}
	copy(p.contents[index*p.size:], payload)
	p.received |= 1 << index
	if bits.OnesCount64(p.received) < fragments {
		return nil
	}
	p.done = true
	if missing := bits.TrailingZeros64(^p.received); missing < fragments {
		r.lastLoss.Store(time.Now().UnixNano())
		p.restore(missing)
	}
	return p.contents[:total]
}

// skip notes, by its first fragment, a message that is complete already. Its later fragments do not
// begin a new message.
func (r *reassembler) skip(first []byte) {
	r.partialOf(partial{
		id:    binary.BigEndian.Uint32(first[4:]),
		count: int(first[1]),
		size:  len(first) - fragmentHeaderSize,
		pad:   int(first[3]),
	}).done = true
}

// partialOf finds the place of a message.
func (r *reassembler) partialOf(of partial) *partial {
	p := &r.messages[of.id%inFlight]
	if p.count != of.count || p.id != of.id || p.size != of.size || p.pad != of.pad {
		if p.count != 0 && !p.done { // the former message is lost
			r.lastLoss.Store(time.Now().UnixNano())
		}
		of.contents = p.contents
		*p = of
	}
	return p
}

// restore computes a lost fragment from all the others.
func (p *partial) restore(missing int) {
	lost := p.contents[missing*p.size:][:p.size]
	clear(lost)
	for i := range p.count + 1 {
		if i != missing {
			subtle.XORBytes(lost, lost, p.contents[i*p.size:][:p.size])
		}
	}
}

// reassembleInOrder puts a message together whose fragments lie one after the other in datagrams,
// each of the given size. It returns the message's length and the fragments' length; both are 0
// when the fragments do not lie so.
func reassembleInOrder(packet, datagrams []byte, size int) (n, taken int) {
	head := datagrams[:fragmentHeaderSize]
	fragments, pad, payload := int(head[1]), int(head[3]), size-fragmentHeaderSize
	taken, n = fragments*size, fragments*payload-pad
	if head[2] != 0 || fragments == 0 || taken > len(datagrams) || pad >= payload || n > len(packet) {
		return 0, 0
	}
	for i := 1; i < fragments; i++ {
		h := datagrams[i*size : i*size+fragmentHeaderSize]
		if h[0] != FragmentType || h[1] != head[1] || int(h[2]) != i || h[3] != head[3] {
			return 0, 0
		}
		if [4]byte(h[4:]) != [4]byte(head[4:]) {
			return 0, 0
		}
	}
	for i := range fragments {
		copy(packet[i*payload:n], datagrams[i*size+fragmentHeaderSize:(i+1)*size])
	}
	return n, taken
}
