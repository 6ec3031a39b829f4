package netstack

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// segment is a segment that netstack writes on a connection; the port tells connections apart.
type segment struct {
	port    uint16
	ack     uint32
	flags   header.TCPFlags
	payload int
	sack    bool
}

func (s segment) packet() *stack.PacketBuffer {
	options := plainOptions
	if s.sack {
		options += 12
	}
	p := stack.NewPacketBuffer(
		stack.PacketBufferOptions{
			ReserveHeaderBytes: header.IPv4MinimumSize + header.TCPMinimumSize + options,
			Payload:            buffer.MakeWithData(make([]byte, s.payload)),
		},
	)
	tcp := header.TCP(p.TransportHeader().Push(header.TCPMinimumSize + options))
	tcp.Encode(
		&header.TCPFields{
			SrcPort:    s.port,
			DstPort:    7474,
			AckNum:     s.ack,
			DataOffset: uint8(header.TCPMinimumSize + options),
			Flags:      s.flags | header.TCPFlagAck,
		},
	)
	ip := header.IPv4(p.NetworkHeader().Push(header.IPv4MinimumSize))
	ip.Encode(
		&header.IPv4Fields{
			TotalLength: uint16(p.Size()),
			Protocol:    uint8(header.TCPProtocolNumber),
			SrcAddr:     tcpip.AddrFrom4([4]byte{198, 18, 0, 1}),
			DstAddr:     tcpip.AddrFrom4([4]byte{198, 18, 0, 2}),
		},
	)
	p.NetworkProtocolNumber, p.TransportProtocolNumber = header.IPv4ProtocolNumber, header.TCPProtocolNumber
	return p
}

// These are the acknowledgements that leave at once, by the acknowledged number, when netstack
// writes segments without any time between them.
func TestBareAcknowledgementsWait(t *testing.T) {
	for name, c := range map[string]struct {
		written []segment
		atOnce  []uint32
		later   uint32 // 0 for none
	}{
		"the first of a connection leaves at once": {written: []segment{{ack: 1}}, atOnce: []uint32{1}},
		"one of a small message waits": {
			written: []segment{{ack: 1}, {ack: 101}},
			atOnce:  []uint32{1},
			later:   101,
		},
		"a segment with data replaces it": {
			written: []segment{{ack: 1}, {ack: 101}, {ack: 101, payload: 10}},
			atOnce:  []uint32{1, 101},
		},
		"every second one leaves": {
			written: []segment{{ack: 1}, {ack: 101}, {ack: 201}, {ack: 301}},
			atOnce:  []uint32{1, 201},
			later:   301,
		},
		"one of much data leaves at once": {
			written: []segment{{ack: 1}, {ack: 20001}},
			atOnce:  []uint32{1, 20001},
		},
		"a repeated one leaves at once": {
			written: []segment{{ack: 1}, {ack: 1}, {ack: 1}},
			atOnce:  []uint32{1, 1, 1},
		},
		"one with SACK leaves at once": {
			written: []segment{{ack: 1}, {ack: 101, sack: true}},
			atOnce:  []uint32{1, 101},
		},
		"one with FIN leaves at once": {
			written: []segment{{ack: 1}, {ack: 101, flags: header.TCPFlagFin}},
			atOnce:  []uint32{1, 101},
		},
		"the numbers wrap around": {
			written: []segment{{ack: 1<<32 - 1}, {ack: 99}},
			atOnce:  []uint32{1<<32 - 1},
			later:   99,
		},
		"connections do not affect each other": {
			written: []segment{{ack: 1}, {ack: 101}, {port: 1, ack: 7, payload: 1}},
			atOnce:  []uint32{1, 7},
			later:   101,
		},
	} {
		t.Run(name, func(t *testing.T) {
			link := channel.New(16, 1500, "")
			d := newDelayedAcks(link)
			defer d.Close()
			var sent []uint32
			take := func() bool {
				p := link.Read()
				if p == nil {
					return false
				}
				sent = append(sent, header.TCP(p.TransportHeader().Slice()).AckNumber())
				p.DecRef()
				return true
			}
			d.mu.Lock() // keeps ticks out
			for _, s := range c.written {
				p := s.packet()
				if !d.holdLocked(p) {
					var one stack.PacketBufferList
					one.PushBack(p)
					_, err := link.WritePackets(one)
					require.Nil(t, err)
				}
			}
			for take() {
			}
			d.mu.Unlock()
			require.Equal(t, c.atOnce, sent)
			if c.later != 0 {
				sent = nil
				require.Eventually(t, take, 10*time.Second, time.Millisecond)
				require.Equal(t, []uint32{c.later}, sent)
			}
			require.Eventually(
				t,
				func() bool { d.mu.Lock(); defer d.mu.Unlock(); return len(d.waiting) == 0 },
				10*time.Second,
				time.Millisecond,
			)
			require.False(t, take(), "no acknowledgement leaves twice")
		})
	}
}

// Bulk is acknowledged once for 256 KiB, or at a tick, as long as it is bulk.
func TestBulkIsAcknowledgedLater(t *testing.T) {
	const step = 64 << 10
	link := channel.New(64, 1500, "")
	d := newDelayedAcks(link)
	defer d.Close()
	clock := time.Now()
	d.now = func() time.Time { return clock }
	ack, sent := uint32(1), []uint32(nil)
	// write writes segments, and returns those that leave at once.
	write := func(steps int, each time.Duration) {
		d.mu.Lock()
		defer d.mu.Unlock()
		sent = nil
		for i := range steps {
			s := segment{ack: ack}
			ack += step
			clock = clock.Add(each)
			if p := s.packet(); !d.holdLocked(p) {
				sent = append(sent, uint32(i))
			}
		}
	}
	write(1+bulkSize/step, 100*time.Microsecond)
	require.Len(t, sent, bulkSize/step, "all but the one by which the flow becomes bulk")
	write(12, 100*time.Microsecond)
	require.Equal(t, []uint32{3, 8}, sent, "after 256 KiB without acknowledgement one leaves")
	var last *stack.PacketBuffer
	require.Eventually(
		t,
		func() bool { last = link.Read(); return last != nil },
		10*time.Second,
		time.Millisecond,
		"the last one comes with a tick",
	)
	require.Equal(t, ack-step, header.TCP(last.TransportHeader().Slice()).AckNumber())
	last.DecRef()
	require.Nil(t, link.Read(), "and only that")

	write(32, time.Millisecond)
	write(4, time.Millisecond)
	require.Len(t, sent, 4, "a flow that has become slow is acknowledged at once")
}

// The table of connections is bounded, and connections outside it work.
func TestConnectionTableIsBounded(t *testing.T) {
	link := channel.New(1, 1500, "")
	d := newDelayedAcks(link)
	defer d.Close()
	for i := range 3 * ackFlows {
		s := segment{port: uint16(i), ack: uint32(i), flags: header.TCPFlagPsh}
		p := s.packet()
		p.NetworkHeader().Slice()[12] = byte(i >> 16)
		require.False(t, d.hold(p))
		p.DecRef()
	}
	require.LessOrEqual(t, len(d.flows), ackFlows)
}
