package vif

import (
	"hash/maphash"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// A flow is bulk when it has sent more than bulkAfter bytes lately, and until all that it sent is forgotten: it is forgiven so many bytes each
// second, and has never more than bulkMost to its account. So one that sends less than it is forgiven is never bulk, and bulk that falls silent
// stays it for 4 to 8 s. That is longer than what it sent is under way, so that nothing passes it: TCP would take what was passed for lost.
const (
	bulkAfter = 128 << 10
	bulkMost  = 256 << 10
	forgiven  = 32 << 10
	// bareSize is not counted of a packet: acknowledgements of what comes are no longer.
	bareSize = 100
	// sorterSlots is how many flows are told apart. Two in one slot are bulk when one is.
	sorterSlots = 4096
)

// sorter tells flows that send much from those that somebody waits for.
type sorter struct {
	seed  maphash.Seed
	flows [sorterSlots]flowLoad
}

type flowLoad struct {
	sent int64 // bytes that are not forgiven
	at   int64 // Unix milliseconds
	bulk bool
}

// isBulk counts a packet, and says whether its flow is bulk.
func (s *sorter) isBulk(packet []byte, now time.Time) bool {
	return s.flows[s.slot(packet)].add(len(packet), now.UnixMilli())
}

// slot is where a packet's flow is counted.
func (s *sorter) slot(packet []byte) uint64 {
	var key [40]byte
	protocol, transport := transportOf(packet)
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		copy(key[:], packet[12:20])
	case len(packet) >= 40 && packet[0]>>4 == 6:
		copy(key[:], packet[8:40])
	}
	if (protocol == protocolTCP || protocol == protocolUDP) && len(transport) >= 4 {
		copy(key[32:], transport[:4])
	}
	key[36] = byte(protocol)
	return maphash.Bytes(s.seed, key[:]) % sorterSlots
}

func (f *flowLoad) add(size int, now int64) bool {
	f.sent -= (now - f.at) * forgiven / 1000
	f.at = now
	if f.sent <= 0 {
		f.sent, f.bulk = 0, false
	}
	f.sent = min(f.sent+int64(max(size-bareSize, 0)), bulkMost)
	f.bulk = f.bulk || f.sent > bulkAfter
	return f.bulk
}

// sortedTUN is a TUN that writes down for each packet whether it is bulk: where the message is sent that WireGuard makes of it nothing can be seen of
// that any more. The last byte of WireGuard's buffer is free, and goes with the message.
type sortedTUN struct {
	tun.Device
	sorter sorter
}

func newSortedTUN(t tun.Device) *sortedTUN {
	return &sortedTUN{Device: t, sorter: sorter{seed: maphash.MakeSeed()}}
}

// bulkMark is that byte of a packet of bulk.
const bulkMark = 'b'

func (t *sortedTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.Device.Read(bufs, sizes, offset)
	now := time.Now()
	for i := range n {
		b := bufs[i]
		if mark := len(b) - 1; offset+sizes[i] < mark {
			b[mark] = 0
			if t.sorter.isBulk(b[offset:offset+sizes[i]], now) {
				b[mark] = bulkMark
			}
		}
	}
	return n, err
}

// isBulk says whether a message of WireGuard's was made of a packet of bulk. Handshakes are none, nor are keepalives.
func isBulk(m []byte) bool {
	if len(m) == device.MessageKeepaliveSize || cap(m) != device.MaxMessageSize || len(m) == cap(m) {
		return false
	}
	return m[:cap(m)][cap(m)-1] == bulkMark
}
