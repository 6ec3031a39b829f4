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
		"a request now and then":          {{1, 1000, 1000, 100 * time.Millisecond, false}},
		"a page":                          {{1, 1500, 80, 0, false}},
		"a download":                      {{1, 16000, 100, 0, true}},
		"a slow download":                 {{1, 16000, 100, 100 * time.Millisecond, true}},
		"acknowledgements of a download":  {{1, 52, 100000, 0, false}},
		"a download and another flow":     {{1, 16000, 100, 0, true}, {2, 1000, 1, 0, false}, {1, 1000, 1, 0, true}},
		"a download that pauses":          {{1, 16000, 100, 0, true}, {2, 1000, 1, 3 * time.Second, false}, {1, 1000, 1, 0, true}},
		"a download that has ended":       {{1, 16000, 100, 0, true}, {2, 1000, 1, 10 * time.Second, false}, {1, 1000, 1, 0, false}},
		"requests after a large answer":   {{1, 16000, 100, 0, true}, {1, 500, 200, 100 * time.Millisecond, false}},
		"what is too short to have ports": {{1, 40, 10, 0, false}},
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
