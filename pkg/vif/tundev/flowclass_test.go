package tundev

import (
	"encoding/binary"
	"hash/maphash"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/detour-dev/detour/pkg/vif/packet"
)

// ipPacket is a packet of size bytes from a port of 198.18.0.2, or of fd00::2, to port 80.
func ipPacket(version, protocol byte, port uint16, size int) []byte {
	p := make([]byte, size)
	transport := 20
	if version == 4 {
		p[0], p[9] = 0x45, protocol
		copy(p[12:], []byte{198, 18, 0, 2, 10, 99, 0, 1})
	} else {
		transport = 40
		p[0], p[6] = 0x60, protocol
		p[8], p[23], p[24], p[39] = 0xfd, 2, 0xfd, 1
	}
	binary.BigEndian.PutUint16(p[transport:], port)
	binary.BigEndian.PutUint16(p[transport+2:], 80)
	return p
}

func TestFlowClassifier(t *testing.T) {
	type sends struct {
		port  uint16
		size  int
		count int
		every time.Duration
		bulk  bool // the class of the last packet
	}
	for name, all := range map[string][]sends{
		"a request now and then": {{
			port:  1,
			size:  1000,
			count: 1000,
			every: 100 * time.Millisecond,
			bulk:  false,
		}},
		"a page":     {{port: 1, size: 1500, count: 80, bulk: false}},
		"a download": {{port: 1, size: 16000, count: 100, bulk: true}},
		"a slow download": {{
			port:  1,
			size:  16000,
			count: 100,
			every: 100 * time.Millisecond,
			bulk:  true,
		}},
		"acknowledgements of a download": {{port: 1, size: 52, count: 100000, bulk: false}},
		"a download and another flow": {
			{port: 1, size: 16000, count: 100, bulk: true},
			{port: 2, size: 1000, count: 1, bulk: false},
			{port: 1, size: 1000, count: 1, bulk: true},
		},
		"a download that pauses": {
			{port: 1, size: 16000, count: 100, bulk: true},
			{port: 2, size: 1000, count: 1, every: 3 * time.Second, bulk: false},
			{port: 1, size: 1000, count: 1, bulk: true},
		},
		"a download that has ended": {
			{port: 1, size: 16000, count: 100, bulk: true},
			{port: 2, size: 1000, count: 1, every: 10 * time.Second, bulk: false},
			{port: 1, size: 1000, count: 1, bulk: false},
		},
		"requests after a large answer": {
			{port: 1, size: 16000, count: 100, bulk: true},
			{port: 1, size: 500, count: 200, every: 100 * time.Millisecond, bulk: false},
		},
		"packets too short for ports": {{port: 1, size: 40, count: 10, bulk: false}},
	} {
		for _, version := range []byte{4, 6} {
			for _, protocol := range []byte{packet.TCP, packet.UDP} {
				t.Run(name, func(t *testing.T) {
					s := &NewClassifier(nil).flows
					for s.slot(ipPacket(version, protocol, 1, 44)) == s.slot(ipPacket(version, protocol, 2, 44)) {
						s.seed = maphash.MakeSeed() // a new seed, because the two flows may share a slot
					}
					now := time.Unix(1e9, 0)
					for _, each := range all {
						var bulk bool
						for range each.count {
							now = now.Add(each.every)
							bulk = s.isBulk(ipPacket(version, protocol, each.port, max(each.size, 44)), now)
						}
						require.Equal(t, each.bulk, bulk, "%+v", each)
					}
				})
			}
		}
	}
}

func FuzzFlowClassifier(f *testing.F) {
	f.Add(ipPacket(4, packet.TCP, 1, 60))
	f.Add(ipPacket(6, packet.UDP, 1, 60))
	f.Add([]byte{0x45})
	f.Add([]byte{})
	s := &NewClassifier(nil).flows
	f.Fuzz(func(_ *testing.T, pkt []byte) {
		s.isBulk(pkt, time.Now())
	})
}
