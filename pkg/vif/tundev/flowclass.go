package tundev

import (
	"hash/maphash"
	"time"

	"golang.zx2c4.com/wireguard/tun"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// A flow is bulk from the moment its leaky bucket holds more than bulkAfter bytes until the bucket
// is empty. The bucket holds at most bulkCapacity bytes and drains at drainRate bytes a second. So
// a flow slower than drainRate is never bulk, and a silent bulk flow stays bulk for 4 to 8 s. That
// is longer than its packets are in flight, so that it never changes streams with packets
// outstanding, which TCP would see as reordering.
const (
	bulkAfter    = 128 << 10
	bulkCapacity = 256 << 10
	drainRate    = 32 << 10
	// bareSize bytes of each packet do not count: bare acknowledgements are not longer.
	bareSize = 100
	// classifierSlots is how many flows are told apart. Two flows in one slot are bulk when either
	// is.
	classifierSlots = 4096
)

// flowClassifier tells bulk flows from flows whose user waits for each packet.
type flowClassifier struct {
	seed  maphash.Seed
	flows [classifierSlots]leakyBucket
}

type leakyBucket struct {
	level int64 // bytes in the bucket
	at    int64 // when level was computed, in Unix milliseconds
	bulk  bool
}

// isBulk counts a packet, and reports whether its flow is bulk.
func (s *flowClassifier) isBulk(pkt []byte, now time.Time) bool {
	return s.flows[s.slot(pkt)].add(len(pkt), now.UnixMilli())
}

// slot is the place where a packet's flow is counted.
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

// Classifier is a TUN that marks each packet of a bulk flow (packet.SetClassMark), for the express
// streams of package transport.
//
// Gain: the packets of other flows do not wait behind bulk on a stream transport. Cost: a hash for
// each packet (BenchmarkClassifier). The figures are in docs/design/performance-log.md.
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
