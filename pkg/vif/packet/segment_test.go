package packet

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// largePacket is a large packet as the kernel or netstack makes it: with options, and a checksum
// that is only begun.
func largePacket(six bool, contents []byte) []byte {
	const options = 12
	from, to := tcpip.AddrFromSlice([]byte{198, 18, 0, 2}), tcpip.AddrFromSlice([]byte{10, 99, 0, 1})
	ip := header.IPv4MinimumSize
	if six {
		ip = header.IPv6MinimumSize
		from, to = tcpip.AddrFrom16([16]byte{0xfd, 1}), tcpip.AddrFrom16([16]byte{0xfd, 2})
	}
	packet := append(make([]byte, ip+header.TCPMinimumSize+options), contents...)
	if six {
		header.IPv6(packet).
			Encode(&header.IPv6Fields{
				PayloadLength:     uint16(len(packet) - ip),
				TransportProtocol: header.TCPProtocolNumber,
				HopLimit:          64,
				SrcAddr:           from,
				DstAddr:           to,
			})
	} else {
		header.IPv4(packet).Encode(&header.IPv4Fields{
			TotalLength: uint16(len(packet)),
			ID:          7,
			TTL:         64,
			Protocol:    uint8(header.TCPProtocolNumber),
			SrcAddr:     from,
			DstAddr:     to,
		})
	}
	header.TCP(packet[ip:]).
		Encode(&header.TCPFields{
			SrcPort:    1,
			DstPort:    2,
			SeqNum:     1000,
			AckNum:     9,
			DataOffset: header.TCPMinimumSize + options,
			Flags:      header.TCPFlagAck | header.TCPFlagPsh | header.TCPFlagFin,
		})
	beginChecksum(packet, ip)
	return packet
}

func TestLargePacketsAreCut(t *testing.T) {
	for name, six := range map[string]bool{"IPv4": false, "IPv6": true} {
		t.Run(name, func(t *testing.T) {
			contents := contentsOf(40000)
			s, ok := NewSegmenter(largePacket(six, contents), 15948)
			require.True(t, ok)
			var got []byte
			for last := false; !last; {
				buf := make([]byte, 1<<16)
				packet := buf[:s.Next(buf)]
				require.NotEmpty(t, packet)
				last = len(got)+len(packet)-s.Headers == len(contents)
				tcp := header.TCP(packet[s.IPHeader:])
				require.EqualValues(t, 1000+len(got), tcp.SequenceNumber())
				require.Equal(
					t,
					last,
					tcp.Flags().Contains(header.TCPFlagPsh),
					"PSH is on the last segment only",
				)
				require.Equal(t, last, tcp.Flags().Contains(header.TCPFlagFin))
				if six {
					h := header.IPv6(packet)
					require.EqualValues(t, len(packet)-s.IPHeader, h.PayloadLength())
					require.True(
						t,
						tcp.IsChecksumValid(
							h.SourceAddress(),
							h.DestinationAddress(),
							checksum.Checksum(tcp.Payload(), 0),
							uint16(len(tcp.Payload())),
						),
					)
				} else {
					h := header.IPv4(packet)
					require.True(t, h.IsValid(len(packet)))
					require.True(t, h.IsChecksumValid())
					require.EqualValues(t, 7+s.count-1, h.ID())
					sum, size := checksum.Checksum(tcp.Payload(), 0), uint16(len(tcp.Payload()))
					require.True(t, tcp.IsChecksumValid(h.SourceAddress(), h.DestinationAddress(), sum, size))
				}
				got = append(got, tcp.Payload()...)
			}
			require.True(t, bytes.Equal(contents, got))
			require.Zero(t, s.Next(make([]byte, 1<<16)), "there is no more")
		})
	}
}

func TestOtherPacketsAreNotCut(t *testing.T) {
	whole := largePacket(false, contentsOf(40000))
	for name, packet := range map[string][]byte{"nothing": {}, "half a header": whole[:30], "no contents": whole[:52]} {
		_, ok := NewSegmenter(packet, 1000)
		require.False(t, ok, name)
	}
	_, ok := NewSegmenter(whole, 0)
	require.False(t, ok, "segments without a size")
}

// FuzzCutLarge gives made-up packets to the Segmenter. Cutting must end, and must not make a packet
// larger.
func FuzzCutLarge(f *testing.F) {
	f.Add(largePacket(false, contentsOf(3000)), uint16(1000))
	f.Add(largePacket(true, contentsOf(3000)), uint16(1))
	f.Fuzz(func(t *testing.T, packet []byte, mss uint16) {
		s, ok := NewSegmenter(packet, int(mss))
		if !ok || len(packet) > 1<<16 {
			return
		}
		contents := len(packet) - s.Headers
		buf := make([]byte, 1<<16)
		for n := s.Next(buf); n > 0; n = s.Next(buf) {
			require.LessOrEqual(t, n, len(packet))
			contents -= n - s.Headers
		}
		require.Zero(t, contents)
	})
}

// contentsOf returns n bytes that do not repeat soon.
func contentsOf(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}
