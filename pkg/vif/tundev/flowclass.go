package tundev

import (
	"hash/maphash"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// A flow is bulk when it has sent more than bulkAfter bytes lately, and until all that it sent is forgotten: it is forgiven so many bytes each
// second, and has never more than bulkMost to its account. So one that sends less than it is forgiven is never bulk, and bulk that falls silent
// stays it for 4 to 8 s. That is longer than what it sent is under way, so that nothing passes it: TCP would take what was passed for lost.
const (
	bulkAfter    = 128 << 10
	bulkCapacity = 256 << 10
	drainRate    = 32 << 10
	// bareSize is not counted of a packet: acknowledgements of what comes are no longer.
	bareSize = 100
	// sorterSlots is how many flows are told apart. Two in one slot are bulk when one is.
	classifierSlots = 4096
)

// sorter tells flows that send much from those that somebody waits for.
type flowClassifier struct {
	seed  maphash.Seed
	flows [classifierSlots]leakyBucket
}

type leakyBucket struct {
	level int64 // bytes that are not forgiven
	at    int64 // Unix milliseconds
	bulk  bool
}

// isBulk counts a packet, and says whether its flow is bulk.
func (s *flowClassifier) isBulk(pkt []byte, now time.Time) bool {
	return s.flows[s.slot(pkt)].add(len(pkt), now.UnixMilli())
}

// slot is where a packet's flow is counted.
func (s *flowClassifier) slot(pkt []byte) uint64 {
	var key [40]byte
	protocol, transport := packet.Transport(pkt)
	switch {
	case len(pkt) >= 20 && pkt[0]>>4 == 4:
		copy(key[:], pkt[12:20])
	case len(pkt) >= 40 && pkt[0]>>4 == 6:
		copy(key[:], pkt[8:40])
	}
	if (protocol == packet.TCP || protocol == packet.UDP) && len(transport) >= 4 {
		copy(key[32:], transport[:4])
	}
	key[36] = byte(protocol)
	return maphash.Bytes(s.seed, key[:]) % classifierSlots
}

func (f *leakyBucket) add(size int, now int64) bool {
	f.level -= (now - f.at) * drainRate / 1000
	f.at = now
	if f.level <= 0 {
		f.level, f.bulk = 0, false
	}
	f.level = min(f.level+int64(max(size-bareSize, 0)), bulkCapacity)
	f.bulk = f.bulk || f.level > bulkAfter
	return f.bulk
}

// sortedTUN is a TUN that writes down for each packet whether it is bulk: where the message is sent that WireGuard makes of it nothing can be seen of
// that any more. The last byte of WireGuard's buffer is free, and goes with the message.
type Classifier struct {
	tun.Device
	flows flowClassifier
}

func NewClassifier(t tun.Device) *Classifier {
	return &Classifier{Device: t, flows: flowClassifier{seed: maphash.MakeSeed()}}
}

func (t *Classifier) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.Device.Read(bufs, sizes, offset)
	now := time.Now()
	for i := range n {
		pkt := bufs[i][offset : offset+sizes[i]]
		packet.SetClassMark(bufs[i], offset, sizes[i], t.flows.isBulk(pkt, now))
	}
	return n, err
}
